"""Which entries of an expert's task vector stay, as data: what a run of entries goes through."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float32
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.fused import compiled_counts, compiled_norms, find_compiled, is_compiled
from safemerge.merge.inputs import TensorInputs, runs
from safemerge.merge.magprune import prune_rows_
from safemerge.merge.sparsify import drop_and_rescale_, num_kept, trim_
from safemerge.merge.threshold import (
    MagnitudeCounts,
    Threshold,
    counts_of_magnitudes,
    found_in_bin,
    threshold_of_counts,
)

Sparsify = Literal["none", "magnitude", "random", "rank", "outliers"]

_SMALL_NORM = 1e-7
"""L1 norms below this are not rescaled to or from, as in mergekit."""


class Trim(NamedTuple):
    """Keep what a threshold keeps, without what a higher one keeps."""

    lower: Threshold
    upper: Threshold | None = None
    scale: float = 1.0
    """What is kept is multiplied with this."""


class Drop(NamedTuple):
    """Keep at random, then multiply."""

    density: float
    scale: float = 1.0


class RankedDrop(NamedTuple):
    """Keep at random by magnitude rank in the row, then multiply."""

    density: float
    epsilon: float
    rescale: bool
    scale: float = 1.0


Sparsifier = Trim | Drop | RankedDrop


def sparsifier_of(inputs: TensorInputs, name: str, sparsify: Sparsify) -> Sparsifier | None:
    """Return what an expert's task vector goes through.

    Args:
        inputs: Tensors and coefficients.
        name: The expert.
        sparsify: The method's way.

    Returns:
        The sparsifier; None if every entry stays as it is.

    Raises:
        MergeError: If there is no such way, a density is out of range, or an entry whose
            magnitude counts is not finite.
    """
    if sparsify not in get_args(Sparsify):
        raise MergeError(
            f"{inputs.where}: the way to sparsify must be one of {', '.join(get_args(Sparsify))}; "
            f"got {sparsify!r}."
        )
    if sparsify == "none" or inputs.base.numel() == 0:
        return None
    density = inputs.coefficients.density[name]
    kept = num_kept(density, inputs.base.numel())
    rescale = inputs.coefficients.options.get("rescale", "probability")
    found: Sparsifier
    if sparsify in ("magnitude", "outliers"):
        if density == 1.0:
            return None
        found = _trim(inputs, name, kept, sparsify)
    elif sparsify == "random":
        found = Drop(density, 1.0 / density if rescale == "probability" else 1.0)
    else:
        epsilon = inputs.coefficients.number_of(name, "epsilon")
        found = RankedDrop(density, epsilon, rescale == "probability")
    if rescale != "l1" or density == 1.0:
        return found
    return found._replace(scale=_norm_ratio(inputs, name, found))


def sparsify_run_(
    task_vector: Float32[Tensor, "entries"],
    sparsifier: Sparsifier,
    *,
    inputs: TensorInputs,
    name: str,
    start: int,
) -> None:
    """Sparsify a run of a task vector, in place.

    Args:
        task_vector: The run; for `RankedDrop` whole rows.
        sparsifier: What it goes through.
        inputs: The tensor's inputs, for its names, seed and shape.
        name: The expert.
        start: Flat index of the run's first entry.

    Raises:
        MergeError: If entries are dropped at random and one is not finite.
    """
    if isinstance(sparsifier, Trim):
        _trim_run_(task_vector, sparsifier, start)
    elif isinstance(sparsifier, Drop):
        drop_and_rescale_(
            task_vector,
            density=sparsifier.density,
            seed=inputs.seed,
            tensor=inputs.tensor,
            expert=name,
            start=start,
            rescale=False,
        )
    else:
        prune_rows_(
            task_vector.view(-1, num_columns(inputs.base)),
            density=sparsifier.density,
            epsilon=sparsifier.epsilon,
            rescale=sparsifier.rescale,
            seed=inputs.seed,
            tensor=inputs.tensor,
            expert=name,
            start=start,
        )
    if sparsifier.scale != 1.0:
        task_vector.mul_(sparsifier.scale)


def num_columns(tensor: Tensor) -> int:
    """Return the entries of a row, along the last dimension; a vector is one row."""
    return max(1, tensor.shape[-1] if tensor.ndim else 1)


def _trim_run_(task_vector: Tensor, trim: Trim, start: int) -> None:
    top = None if trim.upper is None else task_vector.clone()
    if top is not None and trim.upper is not None:
        trim_(top, trim.upper, start=start)
    trim_(task_vector, trim.lower, start=start)
    if top is not None:
        task_vector.sub_(top)


def _trim(inputs: TensorInputs, name: str, kept: int, sparsify: Sparsify) -> Trim:
    if sparsify == "magnitude":
        return Trim(_threshold(inputs, name, kept))
    count = inputs.base.numel()
    num_top = min(math.floor(inputs.coefficients.number_of(name, "gamma") * count), count - kept)
    lower = _threshold(inputs, name, kept + num_top)
    return Trim(lower, _threshold(inputs, name, num_top) if num_top else None)


def _threshold(inputs: TensorInputs, name: str, kept: int) -> Threshold:
    if inputs.thresholds is not None:
        held = inputs.thresholds.get(name, inputs.tensor, kept)
        if held is not None:
            return held
    model, base = inputs.model(name), inputs.base
    if model.dtype == base.dtype and inputs.thresholds is None and torch.equal(model, base):
        # NOTE: weights that were frozen in training are common; there is nothing to count.
        return Threshold(0.0, base.numel() - 1)
    if is_compiled(model, base):
        threshold = threshold_of_counts(
            _counts(inputs, name), kept, lambda wanted: find_compiled(base, model, wanted)
        )
    else:
        magnitudes = _magnitudes(model, base)
        threshold = threshold_of_counts(
            _counts(inputs, name, magnitudes),
            kept,
            lambda wanted: found_in_bin(magnitudes, wanted),
        )
    if inputs.thresholds is not None:
        inputs.thresholds.put(name, inputs.tensor, kept, threshold)
    return threshold


def _counts(inputs: TensorInputs, name: str, magnitudes: Tensor | None = None) -> MagnitudeCounts:
    if inputs.thresholds is not None:
        held = inputs.thresholds.counts(name, inputs.tensor)
        if held is not None:
            return held
    where = f"{inputs.where}, expert '{name}'"
    if magnitudes is None:
        counts = compiled_counts(inputs.base, inputs.model(name), where=where)
    else:
        counts = counts_of_magnitudes(magnitudes, where=where)
    if inputs.thresholds is not None:
        inputs.thresholds.put_counts(name, inputs.tensor, counts)
    return counts


def _magnitudes(model: Tensor, base: Tensor) -> Tensor:
    flat, origin = model.flatten(), base.flatten()
    magnitudes = torch.empty(base.numel(), dtype=torch.float32, device=base.device)
    for start, stop in runs(magnitudes):
        part = magnitudes[start:stop]
        torch.sub(flat[start:stop], origin[start:stop].to(torch.float32), out=part).abs_()
    return magnitudes


def _norm_ratio(inputs: TensorInputs, name: str, drop: Sparsifier) -> float:
    """L1 norm of a task vector over that of what is kept of it; 1 where either is tiny."""
    return inputs.derived(
        ("norm ratio", name, inputs.seed, drop), lambda: _found_norm_ratio(inputs, name, drop)
    )


def _found_norm_ratio(inputs: TensorInputs, name: str, drop: Sparsifier) -> float:
    model, base = inputs.model(name), inputs.base
    if isinstance(drop, Drop) and is_compiled(model, base):
        before, after = compiled_norms(
            base, model, density=drop.density, seed=inputs.seed, tensor=inputs.tensor, expert=name
        )
    else:
        before, after = _norms(inputs, name, drop)
    return before / after if min(before, after) >= _SMALL_NORM else 1.0


def _norms(inputs: TensorInputs, name: str, drop: Sparsifier) -> tuple[float, float]:
    flat, base = inputs.model(name).flatten(), inputs.base.flatten()
    before = after = 0.0
    for start, stop in runs(base, multiple=num_columns(inputs.base)):
        part = torch.sub(flat[start:stop], base[start:stop].to(torch.float32))
        before += float(part.abs().sum(dtype=torch.float64))
        sparsify_run_(part, drop, inputs=inputs, name=name, start=start)
        after += float(part.abs().sum(dtype=torch.float64))
    return before, after
