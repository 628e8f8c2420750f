"""The two ways a named tensor is merged: shares of whole weights, and task vectors.

Both walk over a tensor in runs of entries that fit the processor's cache, so that float32
intermediates never reach main memory and peak memory is the result and little more.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.coefficient import Coefficients
from safemerge.merge.consensus import disjoint_mean_, weighted_sum
from safemerge.merge.interpolate import linear_shares, slerp_shares
from safemerge.merge.sparsify import (
    Threshold,
    ThresholdCache,
    drop_and_rescale_,
    threshold_of_magnitudes,
    trim_,
)

Sparsify = Literal["none", "magnitude", "random"]
Consensus = Literal["sum", "disjoint_mean"]

_CHUNK_CPU = 1 << 17
_CHUNK_DEVICE = 1 << 26


@dataclass(frozen=True)
class TensorInputs:
    """All that the merged value of one named tensor depends on."""

    tensor: str
    """Tensor name: seeds the masks, and is named in errors."""
    base: Float[Tensor, "..."]
    experts: Mapping[str, Float[Tensor, "..."]]
    """Expert tensors by name; those that the coefficients do not use may be missing."""
    coefficients: Coefficients
    dtype: torch.dtype
    """Type of the result; arithmetic is in float32 and rounded to nearest, ties to even."""
    base_name: str = "base"
    models: tuple[str, ...] = ()
    """For slerp: the models at t = 0 and t = 1."""
    normalize: bool = True
    """For linear: whether shares are made to sum to 1."""
    seed: int = 0
    """Seed of random masks."""
    thresholds: ThresholdCache | None = None
    """Where trim thresholds are kept between candidates."""

    @property
    def where(self) -> str:
        """The place named first in errors."""
        return f"tensor '{self.tensor}'"

    def model(self, name: str) -> Tensor:
        """Return the tensor of the base or of an expert.

        Raises:
            MergeError: If the model is not given, or its shape is not the base's.
        """
        if name == self.base_name:
            return self.base
        if name not in self.experts:
            raise MergeError(
                f"{self.where}: every model with a weight must be given; got no '{name}'. "
                f"Open its checkpoint."
            )
        found = self.experts[name]
        if found.shape != self.base.shape:
            raise MergeError(
                f"{self.where}: experts must share the base shape; got base "
                f"{tuple(self.base.shape)}, expert '{name}' {tuple(found.shape)}. "
                f"Re-export the expert with the base tokenizer size."
            )
        return found


def merge_linear(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor as a weighted sum of the models' weights; see `linear_shares`.

    Raises:
        MergeError: If the weights sum to zero and are normalised, or are all zero.
    """
    shares = linear_shares(
        inputs.coefficients.weights, normalize=inputs.normalize, where=inputs.where
    )
    return _sum_of_shares(inputs, shares)


def merge_slerp(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by spherical interpolation of two models; see `slerp_shares`.

    Raises:
        MergeError: If the number of models is not 2 or an entry is not finite.
    """
    if len(inputs.models) != 2:
        raise MergeError(
            f"{inputs.where}: slerp must have two models; got {len(inputs.models)}. Name two."
        )
    first, second = inputs.models
    t = inputs.coefficients.t
    if t in (0.0, 1.0):
        return _sum_of_shares(inputs, {first: 1.0 - t, second: t})
    shares = slerp_shares(inputs.model(first), inputs.model(second), t=t)
    return _sum_of_shares(inputs, dict(zip(inputs.models, shares, strict=True)))


def merge_task_vectors(
    inputs: TensorInputs, *, sparsify: Sparsify, consensus: Consensus
) -> Float[Tensor, "..."]:
    """Merge one tensor as base + lambda * consensus of sparsified task vectors.

    Experts of weight zero take no part; with none left, or lambda zero, the result is the base
    bit for bit. Experts are taken in the order of their names, so that the order in which a
    recipe lists them changes nothing.

    Args:
        inputs: Tensors and coefficients; not changed.
        sparsify: ``none``, ``magnitude`` (trim) or ``random`` (drop and rescale).
        consensus: ``sum`` of w_i tau_i, or ``disjoint_mean`` after a sign election.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.
    """
    weights = {
        name: weight for name, weight in sorted(inputs.coefficients.weights.items()) if weight
    }
    lambda_ = inputs.coefficients.lambda_
    if not weights or lambda_ == 0.0:
        return inputs.base.to(inputs.dtype, copy=True)
    flats = {name: inputs.model(name).flatten() for name in weights}
    base = inputs.base.flatten()
    thresholds = (
        {name: _threshold(inputs, name, flat, base) for name, flat in flats.items()}
        if sparsify == "magnitude"
        else {}
    )
    merged = torch.empty(base.shape, dtype=inputs.dtype, device=base.device)
    for start, stop in _runs(base):
        origin = base[start:stop].to(torch.float32)
        task_vectors = []
        for name, flat in flats.items():
            task_vector = torch.sub(flat[start:stop], origin)
            threshold = thresholds.get(name)
            if threshold is not None:
                trim_(task_vector, threshold, start=start)
            elif sparsify == "random":
                drop_and_rescale_(
                    task_vector,
                    density=inputs.coefficients.density[name],
                    seed=inputs.seed,
                    tensor=inputs.tensor,
                    expert=name,
                    start=start,
                )
            task_vectors.append(task_vector)
        total = _consensus(task_vectors, list(weights.values()), consensus)
        merged[start:stop] = torch.add(origin, total, alpha=lambda_)
    return merged.reshape(inputs.base.shape)


def _consensus(task_vectors: list[Tensor], weights: list[float], consensus: Consensus) -> Tensor:
    if consensus == "sum":
        return weighted_sum(task_vectors, weights)
    weighted = [
        task_vector.mul_(weight) for task_vector, weight in zip(task_vectors, weights, strict=True)
    ]
    return disjoint_mean_(weighted, weights)


def _threshold(inputs: TensorInputs, name: str, flat: Tensor, base: Tensor) -> Threshold | None:
    density = inputs.coefficients.density[name]
    if density == 1.0 or base.numel() == 0:
        return None
    if inputs.thresholds is not None:
        held = inputs.thresholds.get(name, inputs.tensor, density)
        if held is not None:
            return held
    threshold = _computed_threshold(
        flat, base, density=density, where=f"{inputs.where}, expert '{name}'"
    )
    if inputs.thresholds is not None:
        inputs.thresholds.put(name, inputs.tensor, density, threshold)
    return threshold


def _computed_threshold(flat: Tensor, base: Tensor, *, density: float, where: str) -> Threshold:
    if flat.dtype == base.dtype and torch.equal(flat, base):
        # NOTE: weights that were frozen in training are common; there is nothing to sort.
        return Threshold(0.0, base.numel() - 1)
    magnitudes = torch.empty(base.shape, dtype=torch.float32, device=base.device)
    for start, stop in _runs(base):
        part = magnitudes[start:stop]
        torch.sub(flat[start:stop], base[start:stop].to(torch.float32), out=part).abs_()
    return threshold_of_magnitudes(magnitudes, density=density, where=where)


def _sum_of_shares(inputs: TensorInputs, shares: Mapping[str, float]) -> Tensor:
    used = {name: share for name, share in sorted(shares.items()) if share}
    if not used:
        raise MergeError(
            f"{inputs.where}: some weight must not be zero; got {dict(shares)}. "
            f"A merge of nothing has no weights: give the base a weight."
        )
    flats = [inputs.model(name).flatten() for name in used]
    merged = torch.empty(inputs.base.numel(), dtype=inputs.dtype, device=inputs.base.device)
    for start, stop in _runs(merged):
        parts = [flat[start:stop] for flat in flats]
        merged[start:stop] = weighted_sum(parts, list(used.values()))
    return merged.reshape(inputs.base.shape)


def _runs(flat: Tensor) -> Iterator[tuple[int, int]]:
    count = flat.numel()
    length = _CHUNK_CPU if flat.device.type == "cpu" else _CHUNK_DEVICE
    for run in range(math.ceil(count / length)):
        yield run * length, min((run + 1) * length, count)
