"""The LoRA adapter of a given rank that is nearest to a merge, whatever method made it.

The update of a weight, merged minus base, is replaced by the matrix of at most that rank that is
nearest in Frobenius norm: its truncated singular value decomposition. What no factors can hold
(norms, embeddings, the output head) is stored whole, or left out where it hardly differs.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError, ConfigError
from safemerge.merge.lora import MergedAdapter, Product, Reduced, relative
from safemerge.weights.checkpoint import OUTPUT_HEAD, Checkpoint
from safemerge.weights.shared_vocabulary import VocabularyView, stored_checkpoint
from safemerge.weights.skeleton import bare_model, conversions
from safemerge.weights.untied import UntiedView

MAX_LEFT_OUT = 0.01
"""Largest share of the update's Frobenius norm that may be left out of an adapter unasked."""

ROUNDING = 1e-6
"""Norm of an update relative to its tensor's, up to which float32 rounding explains it."""

_DENSE = "Drop --adapter to write a whole model."


@dataclass(frozen=True)
class AdapterPlaces:
    """Where an adapter of a base can hold updates; tensors by their names in the base's files."""

    factored: Mapping[str, bool]
    """Weights that peft gives factors: whether it keeps them the other way round."""
    storable: frozenset[str]
    """Tensors of modules that an adapter can store whole."""
    memory_names: Mapping[str, str]
    """Name in memory, as peft's files have it; of tensors that are parameters as they are."""
    causal: bool
    """Whether the model is one that continues text by transformers' naming."""
    head: str | None
    """Name in memory of an output head that is tied to the input embedding."""


def adapter_places(base: Checkpoint) -> AdapterPlaces:
    """Return where peft can hold the update of a base.

    Factors: weights of linear modules and GPT-2's Conv1D, but for the output head, as most
    adapters have them. Whole: tensors of modules without others inside, linear ones too.

    Args:
        base: The base as stored.

    Raises:
        CheckpointError: If transformers does not know the base's architecture.
    """
    from transformers.pytorch_utils import Conv1D

    model = bare_model(base.folder)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings()
    heads = [f"{name}.weight" for name, module in modules.items() if module is head]
    memory = {
        entry.stored[0][0]: entry.memory[0]
        for entry in conversions(model, base.names)
        if entry.converter is None
    }
    factored: dict[str, bool] = {}
    storable: set[str] = set()
    for name, parameter in memory.items():
        path, _, last = parameter.rpartition(".")
        owner = modules.get(path)
        if owner is None or not path or next(owner.children(), None) is not None:
            continue
        storable.add(name)
        if last == "weight" and owner is not head:
            # Exactly these: subclasses may compute something else.
            if type(owner) is torch.nn.Linear:
                factored[name] = False
            elif type(owner) is Conv1D:
                factored[name] = True
    return AdapterPlaces(
        factored=factored,
        storable=frozenset(storable),
        memory_names=memory,
        causal=type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")),
        head=heads[0] if heads and base.tied_embeddings else None,
    )


def nearest_adapter(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    tensors: Iterable[tuple[str, Float[Tensor, "..."]]],
    places: AdapterPlaces,
    *,
    rank: int,
    modules_to_save: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergedAdapter:
    """Return the adapter of at most a rank that is nearest to a merge.

    Beyond the adapter itself, one tensor and its base are in memory. Results are the same at
    each call on one machine.

    Args:
        recipe: What was merged, for messages.
        checkpoints: Base and experts by the names of the recipe.
        tensors: The merge, float32, as `merged_tensors` gives it; read to its end.
        places: Of the base; see `adapter_places`.
        rank: Largest rank of a weight's update, at least 1.
        modules_to_save: Whether modules whose update no factors can hold are stored whole. If
            not, such updates are left out, up to `MAX_LEFT_OUT` of the whole update's norm.
        progress: Called after each tensor with tensors done and tensors in all.

    Returns:
        Factors in float32, with what the rank lost and what was left out.

    Raises:
        ConfigError: If no weight has an update that factors hold, or too much is left out.
        CheckpointMismatchError: If the merge has rows or an output head that the base lacks.
        MergeError, CheckpointChangedError: What `tensors` raises.
    """
    where = f"recipe {recipe.digest[:4]}"
    shown = checkpoints[recipe.base.name]
    if isinstance(shown, VocabularyView | UntiedView):
        raise CheckpointMismatchError(
            f"{where}: an adapter keeps the base's rows and output head, so that the merge must "
            f"have its vocabulary and tie its embeddings as it does; got another. {_DENSE}"
        )
    base = stored_checkpoint(shown)
    names = base.distinct_names
    reduced: dict[str, Reduced] = {}
    whole: dict[str, Tensor] = {}
    saved: set[str] = set()
    exact: list[float] = []
    left_out: dict[str, float] = {}
    for done, (name, tensor) in enumerate(tensors, start=1):
        before = base.tensor(name).double()
        update = tensor.double() - before
        if float(update.norm()) > ROUNDING * float(before.norm()):
            # A bias comes before its weight: names of a layer are sorted.
            if name in places.factored and _module(name) not in saved:
                reduced[name] = truncated(update, rank=rank, transposed=places.factored[name])
            elif name in places.storable and modules_to_save:
                whole[name] = tensor.float().clone()
                saved.add(_module(name))
                exact.append(float(update.norm()))
            else:
                left_out[name] = float(update.norm())
        if progress is not None:
            progress(done, len(names))
    norm = math.hypot(*(item.norm for item in reduced.values()), *exact, *left_out.values())
    _check_left_out(where, left_out, norm, places, modules_to_save=modules_to_save)
    if not reduced:
        raise ConfigError(
            f"{where}: the merge must change some linear weight to be written as an adapter; "
            f"got none that differs from the base. {_DENSE}"
        )
    for name in names:  # what is whole is whole: an unchanged bias too
        if _module(name) in saved and name not in whole:
            whole[name] = base.tensor(name).float().clone()
    memory = {name: places.memory_names[name] for name in (*reduced, *whole)}
    tied_head = None
    if places.head is not None and base.input_embedding in whole:
        # peft's files have the one tensor under both names.
        whole[OUTPUT_HEAD] = whole[base.input_embedding].clone()
        memory[OUTPUT_HEAD] = places.head
        tied_head = OUTPUT_HEAD
    return MergedAdapter(
        products={name: item.product for name, item in reduced.items()},
        whole=whole,
        memory_names=memory,
        lost=relative(
            math.hypot(*(item.lost for item in reduced.values()), *left_out.values()), norm
        ),
        worst=max(
            ((name, relative(item.lost, item.norm)) for name, item in reduced.items()),
            key=lambda item: item[1],
        ),
        tied_head=tied_head,
        left_out=tuple(left_out),
        left_out_share=relative(math.hypot(*left_out.values()), norm),
    )


def truncated(
    update: Float[Tensor, "rows columns"], *, rank: int, transposed: bool = False
) -> Reduced:
    """Return the product of at most a given rank that is nearest to a matrix.

    Singular vectors of the shorter side are eigenvectors of the Gram matrix in float64, which
    costs a fraction of a whole decomposition; directions below its precision are left out. The
    roots of the singular values are shared between the factors. The loss is that of the factors
    as they are returned, rounding included.

    Args:
        update: The matrix, float64.
        rank: Largest rank, at least 1.
        transposed: See `Product`.

    Returns:
        The product in float32, the Frobenius norm of what is lost, and the norm before.

    References:
        Eckart and Young, The approximation of one matrix by another of lower rank, 1936.
    """
    wide = update if update.shape[0] <= update.shape[1] else update.T
    values, vectors = torch.linalg.eigh(wide @ wide.T)  # ascending
    smallest = values[-1] * wide.shape[0] * torch.finfo(values.dtype).eps
    num_kept = max(1, min(rank, int((values > smallest).sum())))
    up = vectors[:, -num_kept:].flip(1)
    roots = values[-num_kept:].flip(0).clamp_min(torch.finfo(values.dtype).tiny).pow(0.25)
    first, second = (up * roots).float(), ((up.T @ wide) / roots[:, None]).float()
    product = Product(first, second) if wide is update else Product(second.T, first.T)
    lost = float((update - product.up.double() @ product.down.double()).norm())
    return Reduced(product._replace(transposed=transposed), lost=lost, norm=float(update.norm()))


def _check_left_out(
    where: str,
    left_out: Mapping[str, float],
    norm: float,
    places: AdapterPlaces,
    *,
    modules_to_save: bool,
) -> None:
    share = relative(math.hypot(*left_out.values()), norm)
    if share <= MAX_LEFT_OUT:
        return
    name = max(left_out, key=lambda item: left_out[item])
    storable = not modules_to_save and left_out.keys() <= places.storable
    advice = "Add --modules-to-save to store them whole, or drop" if storable else "Drop"
    raise ConfigError(
        f"{where}: at most {MAX_LEFT_OUT:.0%} of the update's Frobenius norm may be in tensors "
        f"that no LoRA factors hold; got {share:.1%} in {len(left_out)}, most of it in '{name}'. "
        f"{advice} --adapter to write a whole model."
    )


def _module(name: str) -> str:
    return name.rpartition(".")[0]
