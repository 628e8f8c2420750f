"""Merging LoRA adapters into one, exactly: in the space of their factors.

Where a merge is base + sum of c_i tau_i and every tau_i is a product scale_i B_i A_i, the merged
task vector is the product of the factors side by side, [c_1 scale_1 B_1, ...] [A_1; ...]: nothing
is approximated, and the rank is the sum of ranks. peft's ``add_weighted_adapter`` does the same
with ``combination_type="cat"``.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError, ConfigError, MergeError
from safemerge.merge.coefficient import check_groups, coefficients_for, depth_of, group_of
from safemerge.merge.interpolate import MIN_WEIGHT_SUM, linear_shares
from safemerge.merge.method import merge_tensor, models_read
from safemerge.merge.stream import DTYPES, merge_order
from safemerge.weights.adapter import AdapterCheckpoint
from safemerge.weights.agreement import is_finite
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.shared_vocabulary import VocabularyView, stored_checkpoint
from safemerge.weights.untied import UntiedView

LINEAR_METHODS = ("task_arithmetic", "linear")
"""Methods whose result is the base plus a weighted sum of task vectors."""

_DENSE = "Drop --adapter to write a whole model."


class Product(NamedTuple):
    """A weight's update as the product up down, without a scale."""

    up: Float[Tensor, "rows rank"]
    down: Float[Tensor, "rank columns"]
    embedding: bool = False
    """Whether peft keeps the factors as those of an embedding."""
    transposed: bool = False
    """Whether peft keeps the factors the other way round, as for GPT-2's Conv1D."""

    @property
    def rank(self) -> int:
        """Number of columns of `up`; the product's own rank may be lower."""
        return self.up.shape[1]


class Reduced(NamedTuple):
    """A product of lower rank and what it lost."""

    product: Product
    lost: float
    """Frobenius norm of the difference."""
    norm: float
    """Frobenius norm of the product before."""


@dataclass(frozen=True)
class MergedAdapter:
    """A merge in the space of LoRA factors."""

    products: Mapping[str, Product]
    """Update by weight name."""
    whole: Mapping[str, Float[Tensor, "..."]]
    """Merged tensors of modules that an adapter stores whole, by name."""
    memory_names: Mapping[str, str]
    """Name in memory, as peft's files have it, by the name in the base's files."""
    lost: float
    """Relative Frobenius error of the whole update, 0 where no product was reduced."""
    worst: tuple[str, float]
    """The weight with the largest relative error, and that error."""
    tied_head: str | None = None
    """Name of an output head that is stored whole beside the input embedding that it is."""
    left_out: tuple[str, ...] = ()
    """Tensors that differ from the base and that the adapter leaves as they are there."""
    left_out_share: float = 0.0
    """Frobenius norm of what was left out, relative to that of the whole update; in `lost`."""


def check_adapter_recipe(recipe: MergeRecipe) -> None:
    """Refuse a recipe whose result is no base plus weighted sum of task vectors.

    Args:
        recipe: The recipe; its checkpoints are not looked at.

    Raises:
        ConfigError: If the method is not linear in the task vectors, there are steps, or it
            chooses a tokenizer.
    """
    where = f"recipe {recipe.digest[:4]}"
    if recipe.method.name not in LINEAR_METHODS:
        raise ConfigError(
            f"{where}: an adapter can be written for {' and '.join(LINEAR_METHODS)} only, the "
            f"methods linear in the task vectors; got '{recipe.method.name}'. {_DENSE}"
        )
    if recipe.steps:
        raise ConfigError(
            f"{where}: an adapter can be written without steps only, which are not linear; got "
            f"'{recipe.steps[0].name}'. {_DENSE}"
        )
    if not recipe.tokenizer.is_default:
        raise ConfigError(
            f"{where}: an adapter can be written with the base's tokenizer and template only; "
            f"got a choice of others. {_DENSE}"
        )


def is_factored(recipe: MergeRecipe, checkpoints: Mapping[str, Checkpoint]) -> bool:
    """Tell whether `merge_adapters` takes a recipe: LoRA experts, merged linearly."""
    try:
        check_adapter_recipe(recipe)
        _adapters(f"recipe {recipe.digest[:4]}", recipe, checkpoints)
    except (ConfigError, CheckpointMismatchError):
        return False
    return True


def merge_adapters(
    recipe: MergeRecipe, checkpoints: Mapping[str, Checkpoint], *, rank: int | None = None
) -> MergedAdapter:
    """Merge LoRA adapters of one base into one adapter.

    Adapters may differ in rank, scale (rsLoRA among them) and targets; coefficients may differ by
    layer group and layer, and those that are zero leave an adapter's factors out of a weight. A
    module that some adapter stores whole (modules_to_save) is merged densely and stored whole,
    unless it is a mere copy of the base's.
    Factors are float32, or of the recipe's dtype.

    Args:
        recipe: A recipe that `check_adapter_recipe` takes.
        checkpoints: Base and experts by the names of the recipe.
        rank: Largest rank of a weight's update, at least 1; products above it are replaced by
            the nearest of that rank, see `reduce_rank`. None for the sum of ranks.

    Returns:
        The merged adapter, with what reducing lost.

    Raises:
        ConfigError: If the recipe is not linear, or the weights of ``linear`` do not sum to 1
            and are not normalised, or nothing is left to write.
        CheckpointMismatchError: If an expert that the method merges is no adapter, its
            vocabulary is not the base's, it trains biases, or changes tensors in another way
            than by factors or whole (fused experts, DoRA, single tokens).
        MergeError: If a factor is not finite in the asked dtype.
    """
    check_adapter_recipe(recipe)
    where = f"recipe {recipe.digest[:4]}"
    adapters = _adapters(where, recipe, checkpoints)
    base = checkpoints[recipe.base.name]
    check_groups(recipe, base.distinct_names)
    dtype = DTYPES.get(recipe.dtype, torch.float32)
    saved = {
        _module(name)
        for adapter in adapters.values()
        for name in adapter.adapted_names
        if (stored := adapter.whole(name)) is not None
        and not torch.equal(stored.float(), base.tensor(name).float())
    }
    products: dict[str, Product] = {}
    whole: dict[str, Tensor] = {}
    losses: dict[str, Reduced] = {}
    for name in merge_order(base.distinct_names):
        weights = _weights(recipe, name, base.num_layers or None)
        if _module(name) in saved:
            whole[name] = _dense(recipe, name, checkpoints, dtype)
            continue
        product = _side_by_side(adapters, name, weights)
        if product is None:
            continue
        exact = Reduced(product, lost=0.0, norm=0.0)
        losses[name] = exact if rank is None else reduce_rank(product, rank=rank)
        products[name] = _rounded(where, name, losses[name].product, dtype)
    if not products:
        raise ConfigError(
            f"{where}: the merge must change some weight by a product of factors; got none with "
            f"a coefficient other than zero. {_DENSE}"
        )
    return MergedAdapter(
        products=products,
        whole=whole,
        memory_names=_memory_names({*products, *whole}, adapters),
        lost=relative(
            math.hypot(*(item.lost for item in losses.values())),
            math.hypot(*(item.norm for item in losses.values())),
        ),
        worst=max(
            ((name, relative(item.lost, item.norm)) for name, item in losses.items()),
            key=lambda item: item[1],
        ),
    )


def reduce_rank(product: Product, *, rank: int) -> Reduced:
    """Return the product of at most a given rank that is nearest in Frobenius norm.

    Q R of both factors, then the singular values of the small product of the two R, all in
    float64; the roots of the singular values are shared between the factors. A product that has
    the rank already comes back as it is.

    Args:
        product: The factors.
        rank: Largest rank, at least 1.

    Returns:
        The reduced product in float32, the norm of what was lost, and the norm before.

    References:
        Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    up, down = product.up.double(), product.down.double()
    left, upper = torch.linalg.qr(up)
    right, lower = torch.linalg.qr(down.T)
    outer, values, inner = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    norm = float(values.norm())
    if product.rank <= rank:
        return Reduced(product, lost=0.0, norm=norm)
    roots = values[:rank].sqrt()
    reduced = Product(
        up=(left @ (outer[:, :rank] * roots)).float(),
        down=((roots[:, None] * inner[:rank]) @ right.T).float(),
        embedding=product.embedding,
        transposed=product.transposed,
    )
    return Reduced(reduced, lost=float(values[rank:].norm()), norm=norm)


def _adapters(
    where: str, recipe: MergeRecipe, checkpoints: Mapping[str, Checkpoint]
) -> dict[str, AdapterCheckpoint]:
    found: dict[str, AdapterCheckpoint] = {}
    grown = isinstance(checkpoints[recipe.base.name], VocabularyView)
    for name in sorted(recipe.method.model_names() - {recipe.base.name}):
        checkpoint = checkpoints[name]
        if grown or _moves_rows(checkpoint):
            raise CheckpointMismatchError(
                f"{where}, expert '{name}': an adapter keeps the base's rows, so that experts "
                f"must have its tokenizer; got another in '{checkpoint.folder}'. {_DENSE}"
            )
        adapter = stored_checkpoint(checkpoint)
        if not isinstance(adapter, AdapterCheckpoint):
            raise CheckpointMismatchError(
                f"{where}, expert '{name}': must be a LoRA adapter to be merged into one; got a "
                f"whole model in '{checkpoint.folder}'. {_DENSE}"
            )
        dense = [*adapter.dense_names]
        if isinstance(checkpoint, UntiedView):
            # Its one embedding would be two, and only one of them has factors.
            dense += {adapter.base.input_embedding or ""} & {*adapter.adapted_names}
        if dense:
            raise CheckpointMismatchError(
                f"{where}, expert '{name}': must change tensors by a product of two factors, or "
                f"store them whole, to be merged into an adapter; got '{dense[0]}' and "
                f"{len(dense) - 1} others changed in another way (fused experts, DoRA, single "
                f"tokens, a tied embedding). {_DENSE}"
            )
        if adapter.adapter_config.get("bias", "none") != "none":
            raise CheckpointMismatchError(
                f"{where}, expert '{name}': must train no biases to be merged into an adapter; "
                f"got bias '{adapter.adapter_config['bias']}'. {_DENSE}"
            )
        found[name] = adapter
    return found


def _moves_rows(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has rows of embeddings that its own tensors do not give."""
    if not isinstance(checkpoint, VocabularyView) or checkpoint.in_place:
        return False
    changed = getattr(checkpoint.source, "adapted_names", checkpoint.names)
    return not checkpoint.in_order or not checkpoint.by_token.isdisjoint(changed)


def _weights(recipe: MergeRecipe, name: str, num_layers: int | None) -> dict[str, float]:
    """Coefficient of each expert's task vector in one tensor."""
    group, depth = group_of(name, recipe.layer_groups), depth_of(name, num_layers, recipe.anchors)
    numbers = coefficients_for(recipe.method, group, depth)
    where = f"recipe {recipe.digest[:4]}, tensor '{name}'"
    if recipe.method.name != "linear":
        normalize = bool(numbers.options.get("normalize", False))
        weights = linear_shares(numbers.weights, normalize=normalize, where=where)
        return {model: numbers.lambda_ * item for model, item in weights.items()}
    shares = linear_shares(numbers.weights, normalize=recipe.method.normalize, where=where)
    total = math.fsum(shares.values())
    if abs(total - 1.0) > MIN_WEIGHT_SUM:
        raise ConfigError(
            f"{where}: weights of linear must sum to 1 for an adapter, which leaves the base "
            f"whole; got {total:g}. Set normalize to true, or drop --adapter."
        )
    return shares


def _side_by_side(
    adapters: Mapping[str, AdapterCheckpoint], name: str, weights: Mapping[str, float]
) -> Product | None:
    blocks = [
        (update, weights[model] * update.scale)
        for model, adapter in adapters.items()
        if weights.get(model) and (update := adapter.low_rank(name)) is not None
    ]
    if not blocks:
        return None
    return Product(
        up=torch.cat([update.up * scale for update, scale in blocks], dim=1),
        down=torch.cat([update.down for update, _ in blocks], dim=0),
        embedding=blocks[0][0].embedding,
        transposed=blocks[0][0].transposed,
    )


def _dense(
    recipe: MergeRecipe, name: str, checkpoints: Mapping[str, Checkpoint], dtype: torch.dtype
) -> Tensor:
    base = checkpoints[recipe.base.name]
    num_layers = base.num_layers or None
    used = models_read(
        recipe.method,
        tensor=name,
        base_name=recipe.base.name,
        groups=recipe.layer_groups,
        num_layers=num_layers,
    )
    return merge_tensor(
        recipe.method,
        tensor=name,
        base=base.tensor(name),
        experts={model: checkpoints[model].tensor(name) for model in used},
        base_name=recipe.base.name,
        groups=recipe.layer_groups,
        num_layers=num_layers,
        dtype=dtype,
    )


def _rounded(where: str, name: str, product: Product, dtype: torch.dtype) -> Product:
    rounded = product._replace(up=product.up.to(dtype), down=product.down.to(dtype))
    if not (is_finite(rounded.up) and is_finite(rounded.down)):
        raise MergeError(
            f"{where}, tensor '{name}': merged factors must be finite; got NaN or infinity as "
            f"{dtype}. Check the adapters, or make weights and lambda smaller."
        )
    return rounded


def _memory_names(
    names: Iterable[str], adapters: Mapping[str, AdapterCheckpoint]
) -> dict[str, str]:
    found: dict[str, str] = {}
    for adapter in adapters.values():
        found.update({name: adapter.memory_name(name) for name in names if name in adapter})
    return found


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def relative(lost: float, norm: float) -> float:
    """Return a norm relative to another, 0 where that is 0."""
    return lost / norm if norm else 0.0
