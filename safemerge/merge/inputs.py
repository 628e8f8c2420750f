"""What the merged value of one tensor depends on, and the runs of entries it is made in."""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.coefficient import Coefficients
from safemerge.merge.measured import measured_tensor
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.threshold import ThresholdCache
from safemerge.weights.statistics import TensorStatistics

_CHUNK_CPU = 1 << 16
_CHUNK_DEVICE = 1 << 26

_Derived = TypeVar("_Derived")


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
    """For linear: whether shares are made to sum to 1; for elections, whether means are taken."""
    seed: int = 0
    """Seed of random masks."""
    thresholds: ThresholdCache | None = None
    """Where trim thresholds are kept between candidates."""
    spectra: SpectrumCache | None = None
    """Where singular vectors are kept between candidates."""
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)
    """What was measured of the models for this tensor, for methods that need it."""
    out: Float[Tensor, "..."] | None = None
    """Where the result is written; None for new memory."""
    found_finite: set[str] = field(default_factory=set)
    """Names of tensors whose result was seen to be finite while it was written."""

    @property
    def where(self) -> str:
        """The place named first in errors."""
        return f"tensor '{self.tensor}'"

    @property
    def active(self) -> dict[str, float]:
        """Weight of each expert that takes part, sorted by name; none if lambda is zero."""
        if self.coefficients.lambda_ == 0.0:
            return {}
        weights = self.coefficients.weights
        return {name: weight for name, weight in sorted(weights.items()) if weight}

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

    def weighted_models(self) -> dict[str, float]:
        """Return the weight of each model that takes part, sorted by name.

        Raises:
            MergeError: If there is none.
        """
        weights = {name: at for name, at in sorted(self.coefficients.weights.items()) if at}
        if not weights:
            raise MergeError(
                f"{self.where}: some weight must not be zero; got {self.coefficients.weights}. "
                f"A merge of nothing has no weights: give a model a weight."
            )
        return weights

    def derived(self, key: tuple[Hashable, ...], find: Callable[[], _Derived]) -> _Derived:
        """Return what depends on the models alone: what an earlier candidate found, or found now.

        Args:
            key: What it is, and of which models.
            find: Finds it.
        """
        if self.thresholds is None:
            return find()
        held: _Derived | None = self.thresholds.derived((self.tensor, *key))
        if held is None:
            held = find()
            self.thresholds.put_derived((self.tensor, *key), held)
        return held

    def require_statistics(self, name: str) -> None:
        """Refuse a model of which nothing was measured.

        Raises:
            MergeError: If the model's statistics are not given.
        """
        if name not in self.statistics:
            raise MergeError(
                f"{self.where}: statistics of every merged model must be given; got none of "
                f"'{name}'. Gather them."
            )

    def measured(self, name: str, quantity: str, shape: tuple[int, ...]) -> Tensor:
        """Return what was measured of a model for this tensor; see `measured_tensor`."""
        self.require_statistics(name)
        return measured_tensor(self.statistics, name, quantity, shape=shape, where=self.where)

    def destination(self) -> Float[Tensor, "..."]:
        """Return memory for the result, contiguous: `out`, or new."""
        if self.out is not None:
            return self.out
        return torch.empty(self.base.shape, dtype=self.dtype, device=self.base.device)

    def note_finite(self, finite: bool) -> None:
        """Note whether every entry of the result is finite, so that none need look again."""
        if finite:
            self.found_finite.add(self.tensor)

    def rounded(self, merged: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return a result in its dtype, in `out` or new memory."""
        return self.destination().copy_(merged)

    def untouched(self) -> Tensor:
        """Return a copy of the base, in the result's dtype."""
        return self.rounded(self.base)

    def plus(self, update: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return base + lambda * update, rounded once to the result's dtype."""
        origin = self.base.to(torch.float32)
        update = update.reshape(self.base.shape)
        return self.rounded(torch.add(origin, update, alpha=self.coefficients.lambda_))


def num_columns(tensor: Tensor) -> int:
    """Return the entries of a row, along the last dimension; a vector is one row."""
    return max(1, tensor.shape[-1] if tensor.ndim else 1)


def runs(flat: Tensor, *, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of entries that fit the processor's cache.

    Args:
        flat: A flattened tensor; the runs cover it in order.
        multiple: Length that runs are a multiple of (one at least), e.g. that of a row; the
            last run may be shorter.

    Returns:
        Iterator of half-open ranges.
    """
    count = flat.numel()
    length = _CHUNK_CPU if flat.device.type == "cpu" else _CHUNK_DEVICE
    length = max(1, length // multiple) * multiple
    for run in range(math.ceil(count / length)):
        yield run * length, min((run + 1) * length, count)


def gram(
    tensors: Sequence[Tensor], *, origin: Tensor | None = None, where: str = "tensor"
) -> Float64[Tensor, "models models"]:
    """Return the inner products of flattened tensors, less an origin.

    Run by run in float32, added up in float64.

    Args:
        tensors: Tensors of one shape.
        origin: What is subtracted from each first; None for nothing.
        where: Place named in messages.

    Returns:
        Symmetric matrix on the CPU.

    Raises:
        MergeError: If an entry is not finite.
    """
    flats = [tensor.flatten() for tensor in tensors]
    start_at = None if origin is None else origin.flatten()
    total = torch.zeros(len(flats), len(flats), dtype=torch.float64)
    for start, stop in runs(flats[0]):
        parts = torch.stack([flat[start:stop].to(torch.float32) for flat in flats])
        if start_at is not None:
            parts -= start_at[start:stop]
        total += (parts @ parts.T).to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(total).all()):
        raise MergeError(
            f"{where}: entries must be finite, and so their squares' sum; got NaN or infinity. "
            f"Check the checkpoint."
        )
    return total
