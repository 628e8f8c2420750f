"""Sparsification: which entries of a task vector stay (one axis of the merge methods).

References:
    Yadav et al., TIES-Merging, arXiv:2306.01708.
    Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.mask import keep_bits
from safemerge.merge.threshold import Threshold, threshold_of_magnitudes


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
