"""Two candidates on the same prompts: intervals of the difference, and an exact test.

References:
    McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12 (1947); the exact form is a sign test on the discordant pairs. Bonett and
    Price, Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data, J. Educ. Behav. Stat. 37 (2012). Efron and Tibshirani, *An Introduction to the
    Bootstrap*, 1993, chapter 13 (percentile interval).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from safemerge.errors import ScoringError
from safemerge.statistics.share import Z_95

NUM_RESAMPLES = 2000
"""Bootstrap resamples of a comparison."""

_RESAMPLES_AT_ONCE = 100


@dataclass(frozen=True)
class PairedComparison:
    """Left minus right over the samples that both answered."""

    value: float
    """Mean difference, in the scores' unit."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    n: int
    """Samples."""
    num_groups: int
    """Groups that they come in; equal to `n` if they are independent."""
    left_only: int
    """Samples that left scores higher on."""
    right_only: int
    """Samples that right scores higher on."""
    p_value: float | None
    """Exact two-sided McNemar p-value; None for graded scores and for grouped samples."""


def compare_paired(
    left: Sequence[float],
    right: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> PairedComparison:
    """Compare two candidates' scores of the same samples, in the same order.

    Independent verdicts of 0 and 1 get the interval of `paired_share_interval`, which is
    honest where no verdict differs (a bootstrap of identical pairs is a point). Graded or
    grouped scores get a percentile bootstrap over groups.

    Args:
        left: Scores of one candidate, each in [0, 1]; at least one.
        right: Scores of the other.
        groups: Group of each sample, e.g. its prompt; independent samples if left out.
        seed: Seed of the resampling, 0 or more.
        num_resamples: Bootstrap resamples, at least 1.

    Returns:
        The comparison. Unscored samples must be left out before, and counted.

    Raises:
        ScoringError: If there is no sample or the lengths differ.
    """
    n = len(left)
    if n == 0 or len(right) != n or (groups is not None and len(groups) != n):
        raise ScoringError(
            "paired comparison: needs the same samples on both sides; "
            f"got {n} and {len(right)}, groups for {n if groups is None else len(groups)}."
        )
    differences = [one - other for one, other in zip(left, right, strict=True)]
    left_only = sum(difference > 0 for difference in differences)
    right_only = sum(difference < 0 for difference in differences)
    num_groups = n if groups is None else len(set(groups))
    binary = {*left, *right} <= {0.0, 1.0}
    if binary and num_groups == n:
        low, high = paired_share_interval(left_only, right_only, n)
        p_value = mcnemar_p_value(left_only, right_only)
    else:
        low, high = bootstrap_interval(
            differences, groups=groups, seed=seed, num_resamples=num_resamples
        )
        p_value = None
    value = math.fsum(differences) / n
    return PairedComparison(value, low, high, n, num_groups, left_only, right_only, p_value)


def mcnemar_p_value(left_only: int, right_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test.

    Twice the smaller tail of a fair binomial over the discordant pairs, at most 1; 1 if
    there is none. Computed in whole numbers.

    Args:
        left_only: Pairs in which only left is right (or harmful, …), 0 or more.
        right_only: Pairs in which only right is.

    Returns:
        p-value in (0, 1].

    Raises:
        ScoringError: If a count is negative.
    """
    if min(left_only, right_only) < 0:
        raise ScoringError(
            f"mcnemar: counts must be at least 0; got {left_only} and {right_only}."
        )
    discordant = left_only + right_only
    term = tail = 1
    for drawn in range(min(left_only, right_only)):
        term = term * (discordant - drawn) // (drawn + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << discordant))


def paired_share_interval(left_only: int, right_only: int, n: int) -> tuple[float, float]:
    """Return a 95 % interval of the difference of two paired shares (Bonett and Price).

    A Wald interval after one pair is added to each kind of discordance, so that it has a
    width even where no pair differs.

    Args:
        left_only: Pairs in which only left has a verdict of 1.
        right_only: Pairs in which only right has.
        n: All pairs, at least 1.

    Returns:
        Lower and upper end of left minus right, within [-1, 1].

    Raises:
        ScoringError: If the counts don't fit `n`.
    """
    if n < 1 or min(left_only, right_only) < 0 or left_only + right_only > n:
        raise ScoringError(
            f"paired interval: counts must fit n >= 1; got {left_only} and {right_only} of {n}."
        )
    first, second = (left_only + 1) / (n + 2), (right_only + 1) / (n + 2)
    centre = first - second
    half = Z_95 * math.sqrt((first + second - centre**2) / (n + 2))
    return max(-1.0, centre - half), min(1.0, centre + half)


def sign_flip_p_value(
    strata: Sequence[Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    num_flips: int = NUM_RESAMPLES,
) -> float:
    """Return the two-sided p-value of a paired randomisation test.

    If the two sides were alike, each difference could as well have the other sign. The
    statistic is the weighted sum over strata of their mean differences; the p-value is
    (1 + flips at least as far from 0) / (1 + flips), so that it is never 0. For verdicts of
    0 and 1 in one stratum it estimates `mcnemar_p_value`.

    Args:
        strata: Differences, left minus right, by stratum (e.g. suite); each at least one.
        weights: Weight of each stratum's mean; equal if left out.
        seed: Seed of the flips; the same seed gives the same p-value.
        num_flips: Random flips, at least 1.

    Returns:
        p-value in (0, 1].

    Raises:
        ScoringError: If there is no stratum, one is empty, or the lengths differ.

    References:
        Edgington and Onghena, *Randomization Tests*, 2007; Phipson and Smyth,
        arXiv:1603.05766 (the added 1).
    """
    if not strata or not all(map(len, strata)) or (weights and len(weights) != len(strata)):
        raise ScoringError(
            "sign flips: need strata of at least one difference and one weight each; got sizes "
            f"{[len(item) for item in strata]}."
        )
    generator = np.random.default_rng(seed)
    observed, flipped = 0.0, np.zeros(num_flips)
    for differences, weight in zip(strata, weights or [1.0] * len(strata), strict=True):
        values = np.asarray(differences, dtype=np.float64)
        observed += weight * float(values.mean())
        sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
        once = sizes[counts == 1]
        # Sizes that come up once are flipped bit by bit: of graded scores there are thousands.
        for start in range(0, num_flips if len(once) else 0, _RESAMPLES_AT_ONCE):
            stop = min(start + _RESAMPLES_AT_ONCE, num_flips)
            signs = generator.integers(0, 2, size=(stop - start, len(once)), dtype=np.int8)
            flipped[start:stop] += weight * ((2 * signs - 1) @ once) / len(values)
        for size, count in zip(sizes[counts > 1], counts[counts > 1], strict=True):
            positive = generator.binomial(count, 0.5, size=num_flips)
            flipped += weight * size * (2 * positive - count) / len(values)
    # NOTE: sums of the same values in another order may differ in the last bits.
    as_far = int((np.abs(flipped) >= abs(observed) - 1e-12).sum())
    return (1 + as_far) / (1 + num_flips)


def bootstrap_interval(
    differences: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> tuple[float, float]:
    """Return a 95 % percentile interval of a mean by resampling whole groups.

    Args:
        differences: One value a sample; at least one.
        groups: Group of each sample; each its own if left out.
        seed: Seed of the resampling; the same seed gives the same interval.
        num_resamples: Resamples, at least 1.

    Returns:
        The 2.5th and the 97.5th percentile of the resampled means.

    Raises:
        ScoringError: If there is no value or the lengths differ.
    """
    sums = group_sums(differences, groups)
    means = resampled_means(sums, np.random.default_rng(seed), num_resamples=num_resamples)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def group_sums(
    values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]],
    groups: Sequence[Hashable] | None = None,
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return each group's sum of values and its number of samples, shape (groups, 2).

    Args:
        values: One a sample; at least one.
        groups: Group of each sample; each its own if left out.

    Raises:
        ScoringError: If there is no value or the lengths differ.
    """
    n = len(values)
    labels = range(n) if groups is None else groups
    if n == 0 or len(labels) != n:
        raise ScoringError(
            f"bootstrap: needs one group for each value; got {n} values, {len(labels)} groups."
        )
    place = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    found = np.zeros((len(place), 2))
    np.add.at(found, [place[label] for label in labels], np.column_stack([values, np.ones(n)]))
    return found


def resampled_means(
    sums: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    generator: np.random.Generator,
    *,
    num_resamples: int = NUM_RESAMPLES,
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Draw means of whole groups with replacement, by how often each distinct group comes up.

    The counts of a resample are multinomial, so this is the bootstrap itself; with verdicts of
    0 and 1 few groups are distinct.

    Args:
        sums: See `group_sums`.
        generator: Source of chance.
        num_resamples: Means drawn, at least 1.
    """
    size = len(sums)
    kinds, counts = np.unique(sums, axis=0, return_counts=True)
    means = np.empty(num_resamples)
    # NOTE: in slices, so that thousands of distinct groups do not need gigabytes at once.
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        stop = min(start + _RESAMPLES_AT_ONCE, num_resamples)
        drawn = generator.multinomial(size, counts / size, size=stop - start)
        means[start:stop] = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
    return means


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values, in the given order.

    Rejecting those at or below alpha keeps the chance of any false rejection among all of
    them at alpha, whatever their dependence.

    Args:
        p_values: Each in [0, 1]; may be empty.

    Returns:
        Adjusted p-values in [0, 1], never below the given ones.

    Raises:
        ScoringError: If one is outside [0, 1].

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979).
    """
    if any(not 0.0 <= p <= 1.0 for p in p_values):
        raise ScoringError(f"holm: p-values must be in [0, 1]; got {max(p_values, key=abs)}.")
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
