"""Sparsification: which entries of a task vector stay (one axis of the merge methods).

References:
    Yadav et al., TIES-Merging, arXiv:2306.01708.
    Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099.
"""

import math
from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.mask import keep_bits

_SAMPLE_SIZE = 4096


class Threshold(NamedTuple):
    """Which entries of one task vector a trim keeps, in two numbers.

    Kept are entries of magnitude above `magnitude`, and those equal to it up to flat index
    `last_equal`. At magnitude 0 the index is any: a kept zero is as good as a dropped one.
    """

    magnitude: float
    last_equal: int


class ThresholdCache:
    """Trim thresholds by (expert, tensor, entries kept): the next candidate need not sort.

    A cache belongs to one set of checkpoints: names must mean the same weights throughout. The
    least recently used entries are dropped beyond `max_entries`. Safe to share among threads.

    Args:
        max_entries: Entries held; one takes about 300 bytes.
    """

    def __init__(self, max_entries: int = 100_000) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str, int], Threshold] = OrderedDict()
        self._lock = Lock()

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
        _check_finite_entries(flat)
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
    _check_finite_entries(magnitudes, where)
    if magnitudes.device.type == "cpu":
        return _threshold_on_cpu(magnitudes.numpy(), kept)
    return _threshold_on_device(magnitudes, kept)


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
    _check_finite_entries(flat, f"tensor '{tensor}', expert '{expert}'")
    if density == 1.0:
        return
    bits = keep_bits(
        seed, tensor, expert, start, start + flat.numel(), density, device=flat.device
    )
    flat.view(torch.int32).bitwise_and_(bits)
    if rescale:
        flat.mul_(1.0 / density)


def _threshold_on_cpu(magnitudes: npt.NDArray[np.float32], kept: int) -> Threshold:
    # NOTE: numpy's vectorised selection is some fifteen times faster than torch.kthvalue on one
    # core; but slow on many ties (differences of bfloat16 weights), where its sort is fast.
    sample = np.sort(magnitudes[:: max(1, magnitudes.size // _SAMPLE_SIZE)])
    num_ties = np.count_nonzero(sample[1:] == sample[:-1])
    many_ties = 4 * num_ties > sample.size
    place = magnitudes.size - kept
    ordered = np.sort(magnitudes) if many_ties else np.partition(magnitudes, place)
    value = ordered[place]
    if value == 0.0:
        return Threshold(0.0, magnitudes.size - 1)
    num_spare = kept - np.count_nonzero(magnitudes > value)
    equal = np.flatnonzero(magnitudes == value)
    return Threshold(float(value), int(equal[num_spare - 1]))


def _threshold_on_device(magnitudes: Float32[Tensor, "entries"], kept: int) -> Threshold:
    value = float(magnitudes.kthvalue(magnitudes.numel() - kept + 1).values)
    num_spare = kept - int((magnitudes > value).sum())
    equal = (magnitudes == value).nonzero().flatten()
    return Threshold(value, int(equal[num_spare - 1]))


def _check_density(density: float) -> None:
    if not 0.0 < density <= 1.0:
        raise MergeError(
            f"density: must be in (0, 1]; got {density}. Drop an expert by weight 0 instead."
        )


def _check_finite_entries(flat: Float32[Tensor, "entries"], where: str = "task vector") -> None:
    if bool(torch.isfinite(flat.sum())) or bool(torch.isfinite(flat).all()):
        return
    count = int(flat.numel() - torch.isfinite(flat).sum())
    raise MergeError(
        f"{where}: entries must be finite; got {count} NaN or infinite of {flat.numel()}. "
        f"Check the checkpoint."
    )
