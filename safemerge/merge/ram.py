"""Reinforced Agent Merging: what one expert changed is kept, what several changed is averaged.

References:
    Reinforced Agent Merging, arXiv:2601.13572; mergekit 0.1.5, ``ram`` and ``ramplus_tl``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.merge.inputs import TensorInputs, runs
from safemerge.merge.threshold import check_finite_entries


def merge_ram(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by RAM.

    An entry that no expert changed by more than ``epsilon`` is the base's; one that a single
    expert changed moves by that change, times 1 + boost * min(rho, boost_cap); one that several
    changed moves by the mean of theirs. An expert's rho is the number of entries that it shares
    with others over the number of its own, over the whole tensor.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.

    References:
        mergekit 0.1.5, ``ram`` (boost 0) and ``ramplus_tl``, which has no entry of its own count
        as ``epsilon`` of one.
    """
    names = list(inputs.active)
    if not names or inputs.base.numel() == 0:
        return inputs.untouched()
    base = inputs.base.flatten()
    flats = [inputs.model(name).flatten() for name in names]
    epsilon = inputs.coefficients.number("epsilon")

    def changes(start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return the task vectors where they exceed epsilon, and how many do at each entry."""
        origin = base[start:stop].to(torch.float32)
        found = torch.stack([flat[start:stop].to(torch.float32) - origin for flat in flats])
        for name, row in zip(names, found, strict=True):
            check_finite_entries(row, f"{inputs.where}, expert '{name}'")
        changed = found.abs() > epsilon
        return found.mul_(changed), changed.sum(dim=0)

    scale = torch.ones(len(names), 1, device=base.device)
    boost = inputs.coefficients.number("boost")
    if boost:
        shared, own = torch.zeros(2, len(names), dtype=torch.float64, device=base.device)
        for run in runs(base):
            found, count = changes(*run)
            shared += ((found != 0.0) & (count > 1)).sum(dim=1)
            own += ((found != 0.0) & (count == 1)).sum(dim=1)
        rho = shared / own.clamp(min=max(epsilon, torch.finfo(torch.float32).tiny))
        rho.clamp_(max=inputs.coefficients.number("boost_cap"))
        scale = (1.0 + boost * rho).to(torch.float32).unsqueeze(1)
    merged = torch.empty(base.numel(), dtype=torch.float32, device=base.device)
    for start, stop in runs(base):
        found, count = changes(start, stop)
        alone = found.mul(scale).sum(dim=0)
        merged[start:stop] = torch.where(count == 1, alone, found.sum(dim=0) / count.clamp(min=1))
    return inputs.plus(merged)
