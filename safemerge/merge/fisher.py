"""Fisher merging: each entry a mean of the models, weighted by what each knows of it.

References:
    Matena and Raffel, Merging Models with Fisher-Weighted Averaging, arXiv:2111.09832.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.inputs import TensorInputs, runs


def merge_fisher(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor as the sum of c_i F_i theta_i over the sum of c_i F_i, entry by entry.

    F_i is a model's diagonal Fisher information, not less than the floor; c_i its weight, over
    the norm of its whole diagonal if normalised. Computed as the first model plus the weighted
    mean of differences from it, so that equal models give themselves, bit for bit.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If a model's tensor or Fisher is missing, of another shape or not finite; a
            Fisher is zero everywhere; or no model has information about some entry.

    References:
        arXiv:2111.09832, Fisher merging with a diagonal; normalisation and floor (1e-6, on all
        models or on a target) as in the authors' code, model_merging/merging.py. Departure: the
        floor may be relative, for the Fisher of large models is small.
    """
    weights = inputs.weighted_models()
    flats = [inputs.model(name).flatten() for name in weights]
    if len(weights) == 1:
        return flats[0].to(inputs.dtype, copy=True).reshape(inputs.base.shape)
    shape = tuple(inputs.base.shape)
    fishers = [inputs.measured(name, "fisher", shape).flatten() for name in weights]
    scales = [_scale(inputs, name, weight) for name, weight in weights.items()]
    largest = max(scales)
    floors = [_floor(inputs, name) for name in weights]
    merged = torch.empty(inputs.base.numel(), dtype=inputs.dtype, device=inputs.base.device)
    for start, stop in runs(merged):
        first = flats[0][start:stop].to(torch.float32)
        total, moved = torch.zeros_like(first), torch.zeros_like(first)
        for flat, fisher, scale, floor in zip(flats, fishers, scales, floors, strict=True):
            information = fisher[start:stop].to(torch.float32).clamp(min=floor)
            information.mul_(scale / largest)
            total.add_(information)
            moved.addcmul_(information, torch.sub(flat[start:stop], first))
        if not bool(total.all()):
            raise MergeError(
                f"{inputs.where}: some model must have information about each entry; got "
                f"{int((total == 0).sum())} or more entries with a Fisher of zero in all. Set "
                f"floor above 0."
            )
        merged[start:stop] = torch.add(first, moved.div_(total))
    return merged.reshape(inputs.base.shape)


def _scale(inputs: TensorInputs, name: str, weight: float) -> float:
    if not inputs.normalize:
        return weight
    norm = inputs.statistics[name].fisher_norm
    if norm == 0.0:
        raise MergeError(
            f"{inputs.where}: Fisher of '{name}' must not be zero everywhere; got a norm of 0. "
            f"Gather its statistics on rows with answers."
        )
    return weight / norm


def _floor(inputs: TensorInputs, name: str) -> float:
    options = inputs.coefficients.options
    if options.get("target", name) != name:
        return 0.0
    mean = options["floor_unit"] == "mean"
    unit = inputs.statistics[name].fisher_mean if mean else 1.0
    return inputs.coefficients.number("floor") * unit
