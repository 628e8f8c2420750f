"""Which entries of an expert's task vector stay, as data: what a run of entries goes through."""

import math
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge import compiled
from safemerge.merge.inputs import TensorInputs, num_columns, runs
from safemerge.merge.mask import prune_rows_
from safemerge.merge.threshold import (
    Drop,
    Found,
    MagnitudeCounts,
    RankedDrop,
    Sparsifier,
    Threshold,
    Trim,
    counts_of_magnitudes,
    drop_and_rescale_,
    found_in_bin,
    num_kept,
    threshold_of_counts,
    trim_,
)

Sparsify = Literal["none", "magnitude", "random", "rank", "outliers"]

_SMALL_NORM = 1e-7
"""L1 norms below this are not rescaled to or from, as in mergekit."""


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
    magnitudes = compiled.magnitudes_of(model, base) or _Magnitudes(model, base)
    threshold = threshold_of_counts(
        _counts(inputs, name, magnitudes), kept, magnitudes.found_in_bin
    )
    if inputs.thresholds is not None:
        inputs.thresholds.put(name, inputs.tensor, kept, threshold)
    return threshold


class _Magnitudes:
    """Magnitudes of a task vector's entries in torch, found when they are first asked for."""

    def __init__(self, model: Tensor, base: Tensor) -> None:
        self._model, self._base = model, base

    @cached_property
    def _found(self) -> Float32[Tensor, "entries"]:
        flat, origin = self._model.flatten(), self._base.flatten()
        found = torch.empty(flat.numel(), dtype=torch.float32, device=flat.device)
        for start, stop in runs(found):
            part = found[start:stop]
            torch.sub(flat[start:stop], origin[start:stop].to(torch.float32), out=part).abs_()
        return found

    def counts(self, *, where: str) -> MagnitudeCounts:
        return counts_of_magnitudes(self._found, where=where)

    def found_in_bin(self, wanted: int) -> Found:
        return found_in_bin(self._found, wanted)


def _counts(
    inputs: TensorInputs, name: str, magnitudes: compiled.CompiledMagnitudes | _Magnitudes
) -> MagnitudeCounts:
    if inputs.thresholds is not None:
        held = inputs.thresholds.counts(name, inputs.tensor)
        if held is not None:
            return held
    counts = magnitudes.counts(where=f"{inputs.where}, expert '{name}'")
    if inputs.thresholds is not None:
        inputs.thresholds.put_counts(name, inputs.tensor, counts)
    return counts


def _norm_ratio(inputs: TensorInputs, name: str, drop: Sparsifier) -> float:
    """L1 norm of a task vector over that of what is kept of it; 1 where either is tiny."""
    return inputs.derived(
        ("norm ratio", name, inputs.seed, drop), lambda: _found_norm_ratio(inputs, name, drop)
    )


def _found_norm_ratio(inputs: TensorInputs, name: str, drop: Sparsifier) -> float:
    model, base = inputs.model(name), inputs.base
    norms = None
    if isinstance(drop, Drop):
        norms = compiled.norms_at_random(
            model, base, density=drop.density, seed=inputs.seed, tensor=inputs.tensor, expert=name
        )
    before, after = norms or _norms(inputs, name, drop)
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
