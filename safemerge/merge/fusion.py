"""One expert fused into the base entry by entry: where it stands out, or where it is near.

References:
    mergekit 0.1.5, ``arcee_fusion`` (Arcee AI) and ``nearswap`` (alchemonaut); no papers.
"""

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.merge.inputs import TensorInputs
from safemerge.merge.threshold import check_finite_entries

_LEAST_DIFFERENCE = 1e-6
_LEAST_PROBABILITY = 1e-8
_ROWS_AT_ONCE = 1 << 22


def merge_fusion(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by Arcee Fusion.

    An entry's importance is the magnitude of its change times the divergence of its row, the
    Kullback-Leibler divergence between the softmax of the expert's weights along the last axis
    and the base's. The expert's entries are taken where importance reaches the tensor's median
    plus 1.5 times the distance between its quartiles.

    Raises:
        MergeError: If the expert's tensor is missing, of another shape, or not finite.

    References:
        mergekit 0.1.5, ``arcee_fusion``. Departure: quartiles are those of all entries, where
        mergekit draws a million of larger tensors at random.
    """
    (name,) = list(inputs.active) or (None,)
    if name is None or inputs.base.numel() == 0:
        return inputs.untouched()
    model = inputs.model(name)
    base = inputs.base if inputs.base.ndim else inputs.base.reshape(1)
    update = model.reshape(base.shape).to(torch.float32) - base.to(torch.float32)
    check_finite_entries(update, f"{inputs.where}, expert '{name}'")
    importance = _importance(model.reshape(base.shape), base)
    threshold = _threshold(importance)
    return inputs.plus(update.mul_(importance >= threshold))


def merge_nearswap(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by NearSwap.

    An entry moves from the base's value to the expert's by the share t / abs(difference), at most
    all of it: by t, or to the expert's value where that is nearer. Differences below 1e-6 count
    as that.

    Raises:
        MergeError: If the expert's tensor is missing, of another shape, or not finite.

    References:
        mergekit 0.1.5, ``nearswap``.
    """
    (name,) = list(inputs.active) or (None,)
    if name is None or inputs.base.numel() == 0:
        return inputs.untouched()
    update = inputs.model(name).to(torch.float32) - inputs.base.to(torch.float32)
    check_finite_entries(update, f"{inputs.where}, expert '{name}'")
    share = (inputs.coefficients.t / update.abs().clamp_(min=_LEAST_DIFFERENCE)).clamp_(max=1.0)
    return inputs.plus(update.mul_(share))


def _importance(model: Tensor, base: Tensor) -> Float32[Tensor, "..."]:
    """Return each entry's importance.

    NOTE: float32 and in the steps of mergekit: where updates are small, divergences are of the
    size of rounding, and other steps would choose other entries.
    """
    columns = base.shape[-1]
    rows, origins = model.reshape(-1, columns), base.reshape(-1, columns)
    found = torch.empty(rows.shape, dtype=torch.float32, device=base.device)
    length = max(1, _ROWS_AT_ONCE // columns)
    for start in range(0, len(rows), length):
        part = rows[start : start + length].to(torch.float32)
        origin = origins[start : start + length].to(torch.float32)
        p = torch.softmax(part, dim=-1) + _LEAST_PROBABILITY
        q = torch.softmax(origin, dim=-1) + _LEAST_PROBABILITY
        divergence = torch.sum(p * torch.log(p / q), dim=-1, keepdim=True)
        torch.mul((part - origin).abs(), divergence, out=found[start : start + length])
    return found.reshape(base.shape)


def _threshold(importance: Tensor) -> float:
    """Return the median plus 1.5 times the distance between the quartiles, in float32."""
    values = importance.flatten().cpu().numpy().copy()
    # NOTE: places are rounded down, as mergekit takes them.
    places = [int(np.float32(share) * np.float32(values.size - 1)) for share in (0.25, 0.5, 0.75)]
    values.partition(places)
    first, median, third = values[places]
    return float(median + np.float32(1.5) * (third - first))
