"""Trim thresholds by exact counting: no sorting, and little to do for another density.

Magnitudes of float32 order as their bits do. So one pass counts them by their leading sixteen
bits; for a density, one more pass looks into the one bin where its threshold lies. The counts
are few (a bin per magnitude to three digits), whatever the size of the tensor, and are kept.

References:
    Yadav et al., TIES-Merging, arXiv:2306.01708.
    Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.mask import MAX_BYTES, RankCache, keep_bits

_NUM_BINS = 1 << 15
_FIRST_BROKEN_BIN = 0x7F80

Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Low sixteen bits and flat indices of a bin's entries, in the order of their indices."""


class Threshold(NamedTuple):
    """Which entries of one task vector a trim keeps, in two numbers.

    Kept are entries of magnitude above `magnitude`, and those equal to it up to flat index
    `last_equal`. At magnitude 0 the index is any: a kept zero is as good as a dropped one.
    """

    magnitude: float
    last_equal: int


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


class MagnitudeCounts(NamedTuple):
    """How many entries of a task vector have each magnitude, by their leading sixteen bits."""

    bins: npt.NDArray[np.int64]
    """Bins that are not empty, rising: float32 bits of the magnitude, shifted right by 16."""
    counts: npt.NDArray[np.int64]
    """Entries in each."""

    @property
    def num_entries(self) -> int:
        """Entries of the task vector."""
        return int(self.counts.sum())


@runtime_checkable
class KeptCounts(Protocol):
    """Counts on disk; see `derived`."""

    def counts(self, expert: str, tensor: str) -> MagnitudeCounts | None:
        """Return counts, None if there are none."""
        ...

    def put_counts(self, expert: str, tensor: str, counts: MagnitudeCounts) -> None:
        """Keep counts."""
        ...


class ThresholdCache:
    """What sparsifying needs of an expert's tensor: thresholds, counts, ranks, norms.

    A cache belongs to one set of checkpoints: names must mean the same weights throughout. The
    least recently used thresholds are dropped beyond `max_entries`; counts are some kilobytes a
    tensor and stay. Safe to share among threads.

    Args:
        max_entries: Thresholds held; one takes about 300 bytes.
        kept: Where counts are kept for other processes; None for nowhere.
        max_rank_bytes: Memory that DELLA's ranks may take.
    """

    def __init__(
        self,
        max_entries: int = 100_000,
        *,
        kept: KeptCounts | None = None,
        max_rank_bytes: int = MAX_BYTES,
    ) -> None:
        self._max_entries = max_entries
        self._kept = kept
        self._entries: OrderedDict[tuple[str, str, int], Threshold] = OrderedDict()
        self._counts: dict[tuple[str, str], MagnitudeCounts] = {}
        self._derived: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = Lock()
        self.ranks = RankCache(max_rank_bytes)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, expert: str, tensor: str, kept: int) -> Threshold | None:
        """Return a threshold, None if it is not held."""
        with self._lock:
            found = self._entries.get((expert, tensor, kept))
            if found is not None:
                self._entries.move_to_end((expert, tensor, kept))
            return found

    def put(self, expert: str, tensor: str, kept: int, threshold: Threshold) -> None:
        """Hold a threshold, dropping the least recently used one if full."""
        with self._lock:
            self._entries[expert, tensor, kept] = threshold
            self._entries.move_to_end((expert, tensor, kept))
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def forget(self) -> None:
        """Drop thresholds and small results, not the counts that thresholds are found from."""
        with self._lock:
            self._entries.clear()
            self._derived.clear()

    def derived(self, key: Hashable) -> Any:
        """Return another small result, None if it is not held."""
        with self._lock:
            return self._derived.get(key)

    def put_derived(self, key: Hashable, found: Any) -> None:
        """Hold another small result, such as inner products, dropping the oldest one if full.

        Args:
            key: All that it depends on besides the checkpoints: tensor, models, seed, densities.
            found: A few numbers; not None.
        """
        with self._lock:
            self._derived[key] = found
            while len(self._derived) > self._max_entries:
                self._derived.popitem(last=False)

    def counts(self, expert: str, tensor: str) -> MagnitudeCounts | None:
        """Return the counts of an expert's tensor, None if they are not held or kept."""
        with self._lock:
            held = self._counts.get((expert, tensor))
        if held is None and self._kept is not None:
            held = self._kept.counts(expert, tensor)
            if held is not None:
                with self._lock:
                    self._counts[expert, tensor] = held
        return held

    def put_counts(self, expert: str, tensor: str, counts: MagnitudeCounts) -> None:
        """Hold the counts of an expert's tensor."""
        with self._lock:
            self._counts[expert, tensor] = counts
        if self._kept is not None:
            self._kept.put_counts(expert, tensor, counts)


def threshold_of_magnitudes(
    magnitudes: Float32[Tensor, "entries"], *, kept: int, where: str = "task vector"
) -> Threshold:
    """Return the threshold that keeps exactly `kept` entries.

    Args:
        magnitudes: Absolute values of a flattened task vector, not empty; not changed.
        kept: Entries kept, from 1 to their number.
        where: Place named in messages.

    Returns:
        The smallest kept magnitude and the flat index of the last kept entry equal to it.

    Raises:
        MergeError: If there is no entry or `kept` exceeds their number, or one is not finite.
    """
    if not 1 <= kept <= magnitudes.numel():
        raise MergeError(
            f"{where}: must keep between 1 entry and all {magnitudes.numel()}; got {kept}. "
            f"Skip empty tensors."
        )
    counts = counts_of_magnitudes(magnitudes, where=where)
    return threshold_of_counts(counts, kept, lambda wanted: found_in_bin(magnitudes, wanted))


def counts_of_magnitudes(
    magnitudes: Float32[Tensor, "entries"], *, where: str = "task vector"
) -> MagnitudeCounts:
    """Count magnitudes by their leading sixteen bits.

    Raises:
        MergeError: If one is not finite.
    """
    leading = magnitudes.view(torch.int32) >> 16
    return nonempty_counts(torch.bincount(leading, minlength=_NUM_BINS).cpu().numpy(), where=where)


def nonempty_counts(counts: npt.NDArray[np.int64], *, where: str) -> MagnitudeCounts:
    """Return the counts of all 2**15 bins without the empty ones.

    Raises:
        MergeError: If a bin of NaN or infinities is not empty.
    """
    broken = int(counts[_FIRST_BROKEN_BIN:].sum())
    if broken:
        raise MergeError(
            f"{where}: entries must be finite; got {broken} NaN or infinite of "
            f"{int(counts.sum())}. Check the checkpoint."
        )
    bins = np.flatnonzero(counts)
    return MagnitudeCounts(bins, counts[bins])


def found_in_bin(magnitudes: Float32[Tensor, "entries"], wanted: int) -> Found:
    """Return low bits and flat indices of a bin's entries, zeros left out."""
    bits = magnitudes.view(torch.int32)
    index = ((bits >> 16 == wanted) & (bits != 0)).nonzero().flatten()
    return (bits[index] & 0xFFFF).cpu().numpy().astype(np.int64), index.cpu().numpy()


def threshold_of_counts(
    counts: MagnitudeCounts, kept: int, find: Callable[[int], Found]
) -> Threshold:
    """Return the threshold that keeps exactly `kept` entries, from counts and one bin's entries.

    Args:
        counts: Counts of the whole task vector.
        kept: Entries kept, from 1 to their number.
        find: Gives the entries of a bin that are not zero.

    Returns:
        The smallest kept magnitude and the flat index of the last kept entry equal to it.
    """
    at_least = counts.counts[::-1].cumsum()[::-1]
    place = int(np.flatnonzero(at_least >= kept)[-1])
    above = int(at_least[place] - counts.counts[place])
    wanted, rank = int(counts.bins[place]), kept - above
    low, index = find(wanted)
    if rank > len(low):
        # NOTE: only zeros are left out of a bin, so the threshold is zero.
        return Threshold(0.0, counts.num_entries - 1)
    falling = np.bincount(low, minlength=1 << 16)[::-1].cumsum()[::-1]
    value = int(np.flatnonzero(falling >= rank)[-1])
    num_larger = int(falling[value + 1]) if value + 1 < len(falling) else 0
    equal = index[low == value]
    magnitude = np.array([wanted << 16 | value], dtype=np.int32).view(np.float32)[0]
    return Threshold(float(magnitude), int(equal[rank - num_larger - 1]))


def sparsify_by_magnitude(
    task_vector: Float[Tensor, "*shape"], *, density: float
) -> Float[Tensor, "*shape"]:
    """Keep the largest-magnitude entries of a task vector, zero the rest.

    Exactly ``max(1, floor(density * n))`` of the ``n`` entries are kept. Ties in magnitude
    keep the lower flat index, so the result does not depend on device. The input is not
    changed. No rescaling is done.

    Args:
        task_vector: Expert minus base for one named tensor, any shape and float dtype.
        density: Fraction of entries kept, in (0, 1]. 1 returns an equal tensor.

    Returns:
        Tensor of the same shape, dtype and device.

    Raises:
        MergeError: If ``density`` is outside (0, 1] or an entry is not finite.

    References:
        Yadav et al., TIES-Merging, arXiv:2306.01708, algorithm 1, step 1 ("Trim"). Departure: the
        paper trims over the whole model; here, in peft and in mergekit, over one tensor.
    """
    _check_density(density)
    flat = task_vector.detach().to(torch.float32, copy=True).flatten()
    if flat.numel() == 0 or density == 1.0:
        check_finite_entries(flat)
        return task_vector.clone()
    trim_(flat, magnitude_threshold(flat, density=density))
    return flat.to(task_vector.dtype).reshape(task_vector.shape)


def sparsify_at_random(
    task_vector: Float[Tensor, "*shape"],
    *,
    density: float,
    seed: int,
    tensor: str,
    expert: str,
) -> Float[Tensor, "*shape"]:
    """Keep entries at random and rescale them by 1/density, so that the mean is unchanged.

    Each entry is kept with probability `density`, by the mask of `mask.keep_mask`: the same
    arguments give the same entries on any device. The input is not changed.

    Args:
        task_vector: Expert minus base for one named tensor, any shape and float dtype.
        density: Probability of keeping an entry, in (0, 1]; the paper's drop rate p is
            1 - density. 1 returns an equal tensor.
        seed: The recipe's seed.
        tensor: Tensor name.
        expert: Expert name.

    Returns:
        Tensor of the same shape, dtype and device.

    Raises:
        MergeError: If ``density`` is outside (0, 1] or an entry is not finite.

    References:
        Yu et al., arXiv:2311.03099, section 3 (Drop And REscale).
    """
    _check_density(density)
    flat = task_vector.detach().to(torch.float32, copy=True).flatten()
    drop_and_rescale_(flat, density=density, seed=seed, tensor=tensor, expert=expert, start=0)
    return flat.to(task_vector.dtype).reshape(task_vector.shape)


def magnitude_threshold(
    flat: Float32[Tensor, "entries"], *, density: float, where: str = "task vector"
) -> Threshold:
    """Return the threshold that keeps exactly ``max(1, floor(density * n))`` entries.

    Args:
        flat: Task vector, flattened, not empty.
        density: Fraction of entries kept, in (0, 1].
        where: Place named in messages.

    Returns:
        The smallest kept magnitude and the flat index of the last kept entry equal to it.

    Raises:
        MergeError: If density is outside (0, 1], `flat` is empty, or an entry is not finite.
    """
    _check_density(density)
    if flat.numel() == 0:
        raise MergeError(f"{where}: must have entries; got none. Skip empty tensors.")
    return threshold_of_magnitudes(flat.abs(), kept=num_kept(density, flat.numel()), where=where)


def num_kept(density: float, num_entries: int) -> int:
    """Return how many entries a density keeps: ``max(1, floor(density * n))``.

    Raises:
        MergeError: If density is outside (0, 1].
    """
    _check_density(density)
    return max(1, math.floor(density * num_entries))


def trim_(flat: Float32[Tensor, "entries"], threshold: Threshold, *, start: int = 0) -> None:
    """Zero, in place, the entries that a threshold does not keep.

    Args:
        flat: Part of a flattened task vector; changed.
        threshold: Threshold of the whole task vector.
        start: Flat index of the part's first entry in the whole.
    """
    split = min(max(threshold.last_equal + 1 - start, 0), flat.numel())
    # NOTE: hardshrink zeroes |x| <= limit and keeps NaN; the float below keeps equals.
    below = float(np.nextafter(np.float32(threshold.magnitude), np.float32(-1.0)))
    for part, limit in ((flat[:split], below), (flat[split:], threshold.magnitude)):
        if part.numel():
            torch.hardshrink(part, limit, out=part)


def drop_and_rescale_(
    flat: Float32[Tensor, "entries"],
    *,
    density: float,
    seed: int,
    tensor: str,
    expert: str,
    start: int,
    rescale: bool = True,
) -> None:
    """Drop entries at random and rescale the rest by 1/density, in place (DARE).

    Args:
        flat: Part of a flattened, contiguous task vector; changed.
        density: Probability of keeping an entry, in (0, 1].
        seed: The recipe's seed.
        tensor: Tensor name.
        expert: Expert name.
        start: Flat index of the part's first entry in the whole.
        rescale: False leaves the kept entries as they are.

    Raises:
        MergeError: If an entry is not finite, dropped or not.
    """
    check_finite_entries(flat, f"tensor '{tensor}', expert '{expert}'")
    if density == 1.0:
        return
    bits = keep_bits(
        seed, tensor, expert, start, start + flat.numel(), density, device=flat.device
    )
    flat.view(torch.int32).bitwise_and_(bits)
    if rescale:
        flat.mul_(1.0 / density)


def check_finite_entries(flat: Float32[Tensor, "*shape"], where: str = "task vector") -> None:
    """Raise the error for entries that are not finite.

    Raises:
        MergeError: If there is one.
    """
    if bool(torch.isfinite(flat.sum())) or bool(torch.isfinite(flat).all()):
        return
    count = int(flat.numel() - torch.isfinite(flat).sum())
    raise MergeError(
        f"{where}: entries must be finite; got {count} NaN or infinite of {flat.numel()}. "
        f"Check the checkpoint."
    )


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:
        raise MergeError(
            f"density: must be in (0, 1]; got {density}. Drop an expert by weight 0 instead."
        )
