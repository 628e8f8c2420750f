"""The p-value of a paired randomisation test, computed and not sampled: no seed, no luck.

If two sides were alike, each group's difference could as well have the other sign. The p-value is
the probability, over all signs, that the sum lies at least as far from 0 as the one observed.

Where the sums fall on few points (verdicts of 0 and 1, grades on a scale, few groups) their
distribution is summed exactly, in two halves (Horowitz and Sahni's way to subset sums). Else each
difference is rounded to a lattice whose distribution has a closed form, the inverse Fourier
transform of a product of cosines, and what the rounding can change is bounded by Hoeffding's
inequality: the p-value then has a lower and an upper end, some percent apart, and both are
certain.

References:
    Edgington and Onghena, *Randomization Tests*, 2007. Horowitz and Sahni, Computing partitions
    with applications to the knapsack problem, J. ACM 21 (1974). Pagano and Tritchler, On
    obtaining permutation distributions in polynomial time, JASA 78 (1983), for the transform.
    Hoeffding, Probability inequalities for sums of bounded random variables, JASA 58 (1963).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from safemerge.errors import ScoringError

MAX_BITS = 18
"""Finest lattice: 2**18 points. The upper end of its p-value is the last word."""

_FIRST_BITS = 14
_MAX_SUPPORT = 1 << 14
"""Points of one half of an exact distribution."""

_SLACK = 1e-12
"""Probability that the bounds leave to rounding errors and tails."""

_Array = npt.NDArray[np.float64]


class PValue(NamedTuple):
    """A two-sided p-value, known to lie between two ends; equal ends: exact."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Between both ends, some percent from either at most."""
        return (self.low + self.high) / 2


def flip_p_value(
    strata: Sequence[Sequence[float] | _Array],
    *,
    weights: Sequence[float] | None = None,
    bits: int = _FIRST_BITS,
) -> PValue:
    """Return the two-sided p-value of a paired randomisation test.

    The statistic is the weighted sum over strata of their mean differences. For verdicts of 0
    and 1 in one stratum it is `mcnemar_p_value`.

    Args:
        strata: Differences, left minus right, by stratum (e.g. suite); each at least one.
        weights: Weight of each stratum's mean; equal if left out.
        bits: Fineness of the lattice where the distribution is too large to be summed exactly:
            2**bits points, at most `MAX_BITS`.

    Returns:
        Ends of the p-value in (0, 1].

    Raises:
        ScoringError: If there is no stratum, one is empty, or the lengths differ.
    """
    if not strata or not all(map(len, strata)) or (weights and len(weights) != len(strata)):
        raise ScoringError(
            "sign flips: need strata of at least one difference and one weight each; got sizes "
            f"{[len(item) for item in strata]}."
        )
    parts = [
        weight * np.asarray(item, dtype=np.float64) / len(item)
        for item, weight in zip(strata, weights or [1.0] * len(strata), strict=True)
    ]
    steps = np.concatenate(parts)
    observed = abs(math.fsum(steps.tolist()))
    scale = float(np.abs(steps).max())
    if scale == 0.0:
        return PValue(1.0, 1.0)
    # NOTE: sums of the same values in another order may differ in the last bits.
    sizes, counts = np.unique(np.round(np.abs(steps) / scale, 12), return_counts=True)
    kept = sizes > 0
    sizes, counts = sizes[kept], counts[kept]
    target = observed / scale - 1e-9
    if target <= 0:
        return PValue(1.0, 1.0)
    exact = _exact(sizes, counts, target)
    if exact is not None:
        return PValue(exact, exact)
    return _on_lattice(np.repeat(sizes, counts), target, bits)


def _exact(sizes: _Array, counts: npt.NDArray[np.int64], target: float) -> float | None:
    """Sum the distribution in two halves; None if a half has too many points."""
    halves: list[tuple[_Array, _Array]] = [(np.zeros(1), np.ones(1))] * 2
    # The largest groups first, each to the smaller half.
    for place in np.argsort(-counts):
        values, chances = _binomial_steps(float(sizes[place]), int(counts[place]))
        for smaller in sorted((0, 1), key=lambda half: len(halves[half][0])):
            merged = _convolved(halves[smaller], (values, chances))
            if merged is not None:
                halves[smaller] = merged
                break
        else:
            return None
    (left, left_chances), (right, right_chances) = halves
    below = np.concatenate([[0.0], np.cumsum(right_chances)])
    above = np.concatenate([np.cumsum(right_chances[::-1])[::-1], [0.0]])
    high = above[np.searchsorted(right, target - left, side="left")]
    low = below[np.searchsorted(right, -target - left, side="right")]
    return float(min(1.0, left_chances @ (high + low)))


def _binomial_steps(size: float, count: int) -> tuple[_Array, _Array]:
    """Distribution of a sum of `count` random signs times `size`."""
    tops = np.arange(count + 1)
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in tops]
    chances = np.exp(np.asarray(logs) - count * math.log(2))
    return (size * (2.0 * tops - count)).astype(np.float64), chances.astype(np.float64)


def _convolved(
    one: tuple[_Array, _Array], other: tuple[_Array, _Array]
) -> tuple[_Array, _Array] | None:
    if len(one[0]) * len(other[0]) > 16 * _MAX_SUPPORT:
        return None
    values = np.round(np.add.outer(one[0], other[0]).ravel(), 10)
    found, place = np.unique(values, return_inverse=True)
    if len(found) > _MAX_SUPPORT:
        return None
    chances = np.bincount(place, weights=np.outer(one[1], other[1]).ravel())
    return found.astype(np.float64), chances.astype(np.float64)


def _on_lattice(sizes: _Array, target: float, bits: int) -> PValue:
    """Bound the p-value by that of sizes rounded to a lattice."""
    num_points = 1 << min(bits, MAX_BITS)
    # Beyond this the sum is never: Hoeffding's bound leaves _SLACK / 4.
    reach = math.sqrt(2 * float(sizes @ sizes) * math.log(8 / _SLACK))
    width = 2.2 * reach / num_points
    steps = np.rint(sizes / width)
    errors = sizes - steps * width
    moved = math.sqrt(2 * float(errors @ errors) * math.log(8 / _SLACK))
    tail = _tail(steps, num_points)
    ends = []
    for sign in (1, -1):
        first = math.ceil((target + sign * moved) / width)
        chance = 2 * tail[first] if 0 < first <= num_points // 2 else float(first <= 0)
        ends.append(chance - sign * _SLACK)
    fewest = 2.0 ** (1 - min(len(sizes), 1000))
    return PValue(min(1.0, max(fewest, ends[0])), min(1.0, max(fewest, ends[1])))


def _tail(steps: _Array, num_points: int) -> _Array:
    """Probability that a sum of random signs times whole steps is at least 0, 1, 2, … ."""
    angles = 2 * math.pi * np.arange(num_points // 2 + 1) / num_points
    transform = np.ones(num_points // 2 + 1)
    alive = np.arange(num_points // 2 + 1)
    for step in np.sort(steps)[::-1]:
        transform[alive] *= np.cos(angles[alive] * step)
        negligible = np.abs(transform[alive]) < 1e-22
        if negligible.mean() > 0.1:
            transform[alive[negligible]] = 0.0
            alive = alive[~negligible]
    chances = np.clip(np.fft.irfft(transform, num_points), 0.0, None)
    upper = chances[: num_points // 2 + 1]
    return np.cumsum(upper[::-1])[::-1]
