"""A recipe and its checkpoints as a stream of named tensors: one path to disk and to engines."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import MergeError
from safemerge.merge.coefficient import check_groups
from safemerge.merge.measured import check_statistics
from safemerge.merge.method import merge_tensor, models_read, statistics_read
from safemerge.merge.sparsify import ThresholdCache
from safemerge.merge.spectrum import SpectrumCache
from safemerge.weights.checkpoint import Checkpoint, layer_of
from safemerge.weights.shared_vocabulary import VocabularyView, share_vocabulary
from safemerge.weights.statistics import ModelStatistics

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def merge_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return tensor names with those of a layer together: embeddings, layers, the rest.

    Args:
        names: Tensor names in any order.

    Returns:
        Names sorted by (embedding first, layer number, name).
    """

    def key(name: str) -> tuple[float, str]:
        layer = layer_of(name)
        if layer is not None:
            return float(layer), name
        return (-1.0 if "embed" in name or ".wte." in f".{name}" else math.inf), name

    return tuple(sorted(names, key=key))


def in_one_vocabulary(
    recipe: MergeRecipe, checkpoints: Mapping[str, Checkpoint]
) -> Mapping[str, Checkpoint]:
    """Return the checkpoints as the recipe's vocabulary shows them; see `share_vocabulary`.

    Args:
        recipe: Recipe; with ``vocabulary: refuse`` nothing changes.
        checkpoints: Base and experts by name, stored or shown in that vocabulary already.

    Returns:
        The recipe's checkpoints by name.

    Raises:
        CheckpointMismatchError: If they cannot be shown in one vocabulary.
        CheckpointError: If a tokenizer cannot be read.
    """
    if recipe.vocabulary == "refuse" or any(
        isinstance(checkpoint, VocabularyView) for checkpoint in checkpoints.values()
    ):
        return checkpoints
    base, experts = share_vocabulary(
        checkpoints[recipe.base.name],
        {ref.name: checkpoints[ref.name] for ref in recipe.experts},
        how=recipe.vocabulary,
        where=f"recipe {recipe.digest[:4]}",
    )
    return {recipe.base.name: base, **experts}


def merged_dtype(recipe: MergeRecipe, base: Checkpoint, name: str) -> torch.dtype:
    """Return the dtype that a merged tensor will have.

    Args:
        recipe: Recipe; its dtype ``base`` stands for the base tensor's own.
        base: The recipe's base.
        name: Tensor name.

    Returns:
        float32, bfloat16 or float16.
    """
    return base.dtype(name) if recipe.dtype == "base" else DTYPES[recipe.dtype]


def merged_tensors(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    *,
    thresholds: ThresholdCache | None = None,
    spectra: SpectrumCache | None = None,
    statistics: Mapping[str, ModelStatistics] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """Yield every tensor of the candidate, in checkpoint names, one after the other.

    Tensors of a layer are adjacent (`merge_order`). A tied output head is left out, even where
    checkpoints store it. Each tensor is new, so that a consumer may keep it; beyond what the
    consumer keeps, memory is one tensor and its inputs. Experts without weight are not read.
    Nothing is checked here that `check_agreement` checks; a shape that differs still raises.

    Args:
        recipe: What to merge.
        checkpoints: Base and experts by the names of the recipe.
        thresholds: Trim thresholds kept between candidates; None for nowhere.
        spectra: Singular vectors kept between candidates; None for nowhere.
        statistics: Open statistics by model name, for recipes that read them; of each, one
            tensor at a time is in memory.
        device: Where tensors are merged and given.

    Returns:
        Iterator of (name, merged tensor).

    Raises:
        MergeError: If a checkpoint or its statistics are not given, or cannot suffice (at the
            call), or a tensor cannot be merged or is not finite (while iterating).
        ConfigError: If a layer group matches no tensor (at the call).
    """
    missing = [ref.name for ref in recipe.checkpoints if ref.name not in checkpoints]
    if missing:
        raise MergeError(
            f"recipe {recipe.digest[:4]}: every model must be open; got no '{missing[0]}' among "
            f"{', '.join(sorted(checkpoints))}. Open its checkpoint."
        )
    checkpoints = in_one_vocabulary(recipe, checkpoints)
    check_groups(recipe, checkpoints[recipe.base.name].distinct_names)
    check_statistics(recipe, statistics or {})
    return _stream(
        recipe, checkpoints, thresholds, spectra, statistics or {}, torch.device(device)
    )


def _stream(
    recipe: MergeRecipe,
    checkpoints: Mapping[str, Checkpoint],
    thresholds: ThresholdCache | None,
    spectra: SpectrumCache | None,
    statistics: Mapping[str, ModelStatistics],
    device: torch.device,
) -> Iterator[tuple[str, Tensor]]:
    base = checkpoints[recipe.base.name]
    num_layers = base.num_layers or None
    for name in merge_order(base.distinct_names):
        place: dict[str, Any] = {
            "tensor": name,
            "base_name": recipe.base.name,
            "groups": recipe.layer_groups,
            "num_layers": num_layers,
            "steps": recipe.steps,
        }
        used = models_read(recipe.method, **place)
        measured = statistics_read(recipe.method, **place)
        yield (
            name,
            merge_tensor(
                recipe.method,
                base=base.tensor(name).to(device),
                experts={expert: checkpoints[expert].tensor(name).to(device) for expert in used},
                seed=recipe.seed,
                dtype=merged_dtype(recipe, base, name),
                thresholds=thresholds,
                spectra=spectra,
                statistics={
                    model: statistics[model].at(name, quantities).to(device)
                    for model, quantities in measured.items()
                },
                **place,
            ),
        )
