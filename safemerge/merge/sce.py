"""SCE: entries selected by variance, weights calculated from squares, minorities erased.

References:
    Wan et al., FuseChat: Knowledge Fusion of Chat Models, arXiv:2408.07990, section 3.3.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.merge.consensus import elect_sign
from safemerge.merge.inputs import TensorInputs, runs
from safemerge.merge.threshold import (
    Threshold,
    check_finite_entries,
    threshold_of_magnitudes,
    trim_,
)

_LEAST_SQUARES = 1e-6
"""Sum of mean squares below which mergekit's weights are equal."""

_LEAST_WEIGHT = 1e-6
"""Least sum of agreeing weights that is divided by."""


def merge_sce(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by SCE.

    Select: of the entries that differ between experts, the share ``density`` of largest variance;
    all with density 1. Calculate: each expert's weight is its task vector's mean square over what
    was selected, over the sum of all experts'. Erase: entries whose sign is not that of the sum
    of task vectors. The result is the weighted mean of what is left.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.

    References:
        arXiv:2408.07990, algorithm 1. As there and in mergekit 0.1.5, per tensor.
        ``variant: mergekit`` has equal weights where the mean squares sum to less than 1e-6.
    """
    names = list(inputs.active)
    if not names or inputs.base.numel() == 0:
        return inputs.untouched()
    base = inputs.base.flatten()
    flats = [inputs.model(name).flatten() for name in names]

    def task_vectors(start: int, stop: int) -> Tensor:
        origin = base[start:stop].to(torch.float32)
        return torch.stack([flat[start:stop].to(torch.float32) - origin for flat in flats])

    for name, flat in zip(names, flats, strict=True):
        for start, stop in runs(flat):
            check_finite_entries(flat[start:stop].float(), f"{inputs.where}, expert '{name}'")
    density = inputs.coefficients.density[names[0]]
    variance = torch.empty(0)
    threshold: Threshold | None = None
    if density < 1.0:
        variance = torch.empty(base.numel(), dtype=torch.float32, device=base.device)
        for start, stop in runs(base):
            variance[start:stop] = torch.var(task_vectors(start, stop), dim=0, correction=0)
        kept = int(torch.count_nonzero(variance) * density)
        if kept == 0:
            return inputs.untouched()
        threshold = threshold_of_magnitudes(variance, kept=kept, where=inputs.where)

    def selected(start: int, stop: int) -> Tensor:
        found = task_vectors(start, stop)
        if threshold is None:
            return found
        part = variance[start:stop].clone()
        trim_(part, threshold, start=start)
        return found * (part > 0.0)

    squares = torch.zeros(len(names), dtype=torch.float64)
    for run in runs(base):
        squares += selected(*run).square().sum(dim=1, dtype=torch.float64).cpu()
    weights = _weights(squares / base.numel(), str(inputs.coefficients.options["variant"]))
    merged = torch.empty(base.numel(), dtype=torch.float32, device=base.device)
    for start, stop in runs(base):
        merged[start:stop] = _mean_of_majority(selected(start, stop), weights.to(base.device))
    return inputs.plus(merged)


def _weights(mean_squares: Tensor, variant: str) -> Tensor:
    total = float(mean_squares.sum())
    if total < (_LEAST_SQUARES if variant == "mergekit" else torch.finfo(torch.float32).tiny):
        return torch.full((len(mean_squares),), 1.0 / len(mean_squares))
    return (mean_squares / total).to(torch.float32)


def _mean_of_majority(task_vectors: Tensor, weights: Tensor) -> Tensor:
    sign = elect_sign(list(task_vectors))
    agreeing = (task_vectors * sign > 0.0) * weights.unsqueeze(1)
    total = (task_vectors * agreeing).sum(dim=0)
    return total.div_(agreeing.sum(dim=0).clamp_min_(_LEAST_WEIGHT))
