"""Rank correlation of two measurements of the same things."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from safemerge.errors import ScoringError


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank.

    Args:
        left: One finite value a thing.
        right: The other, in the same order.

    Returns:
        In [-1, 1]; None for fewer than 3 things, or where one side is all ties.

    Raises:
        ScoringError: If the lengths differ.

    References:
        Spearman, The proof and measurement of association between two things, Am. J. Psychol.
        15 (1904); with ties Pearson's correlation of the mean ranks.
    """
    if len(left) != len(right):
        raise ScoringError(
            f"rank correlation: needs as many values on both sides; got {len(left)} and "
            f"{len(right)}."
        )
    if len(left) < 3:
        return None
    first, second = _centred_ranks(left), _centred_ranks(right)
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale else None


def _centred_ranks(values: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    _, place, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2.0)[place]
    return np.asarray(ranks - ranks.mean())
