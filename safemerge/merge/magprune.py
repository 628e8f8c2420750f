"""MagPrune: entries dropped at random, the small ones of a row more often than the large.

References:
    Deep et al., DELLA-Merging, arXiv:2406.11617.
"""

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.mask import keep_bits_within, keep_limits
from safemerge.merge.rank import columns_by_magnitude


def rank_probabilities(
    num_columns: int, *, density: float, epsilon: float
) -> Float64[Tensor, "columns"]:
    """Return keep probabilities by magnitude rank, the largest entry of a row first.

    They fall in equal steps from density + epsilon to density - epsilon; a row of one entry
    has density.

    Args:
        num_columns: Entries of a row.
        density: Mean keep probability, in (0, 1].
        epsilon: Half the span, >= 0; density - epsilon must be above 0, their sum at most 1.

    Returns:
        One probability for each rank, on the CPU.

    Raises:
        MergeError: If a probability is outside (0, 1].

    References:
        arXiv:2406.11617, section 3.1 (p_min and the rank step). As in mergekit, the largest
        magnitude has the largest keep probability, and density is the middle.
    """
    if not (density - epsilon > 0.0 and density + epsilon <= 1.0 + 1e-12 and epsilon >= 0.0):
        raise MergeError(
            f"epsilon: density - epsilon and density + epsilon must be in (0, 1]; got density "
            f"{density:g}, epsilon {epsilon:g}. Make epsilon smaller."
        )
    if num_columns < 2:
        return torch.full((num_columns,), density, dtype=torch.float64)
    rank = torch.arange(num_columns, dtype=torch.float64) / (num_columns - 1)
    return (density + epsilon - 2.0 * epsilon * rank).clamp(max=1.0)


def prune_rows_(
    rows: Float32[Tensor, "rows columns"],
    *,
    density: float,
    epsilon: float,
    rescale: bool,
    seed: int,
    tensor: str,
    expert: str,
    start: int = 0,
) -> None:
    """Drop entries at random by their rank in the row, in place.

    Among equal magnitudes the lower index counts as the larger, so that the result does not
    depend on the device. Density 1 keeps everything, whatever epsilon.

    Args:
        rows: Whole rows of a task vector, contiguous; changed.
        density: Mean keep probability, in (0, 1].
        epsilon: Half the span of the keep probabilities; see `rank_probabilities`.
        rescale: Whether each kept entry is divided by its keep probability.
        seed: The recipe's seed.
        tensor: Tensor name.
        expert: Expert name.
        start: Flat index of the first entry in the whole tensor.

    Raises:
        MergeError: If an entry is not finite, dropped or not; or a probability is outside
            (0, 1].
    """
    if not bool(torch.isfinite(rows).all()):
        raise MergeError(
            f"tensor '{tensor}', expert '{expert}': entries must be finite; got NaN or infinite "
            f"ones. Check the checkpoint."
        )
    if density == 1.0 or rows.numel() == 0:
        return
    by_rank = rank_probabilities(rows.shape[1], density=density, epsilon=epsilon)
    order = columns_by_magnitude(rows)
    limits = _by_entry(keep_limits(by_rank).to(rows.device), order)
    bits = keep_bits_within(seed, tensor, expert, start, limits.flatten())
    rows.view(torch.int32).bitwise_and_(bits.view_as(rows))
    if rescale:
        rows.mul_(_by_entry(by_rank.reciprocal().to(rows.device, torch.float32), order))


def _by_entry(by_rank: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(order, dtype=by_rank.dtype).scatter_(
        1, order, by_rank.expand(order.shape)
    )
