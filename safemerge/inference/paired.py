"""Two candidates on the same prompts: intervals of the difference, and an exact test.

References:
    McNemar, Note on the sampling error of the difference between correlated proportions,
    Psychometrika 12 (1947); the exact form is a sign test on the discordant pairs. Bonett and
    Price, Adjusted Wald confidence interval for a difference of binomial proportions based on
    paired data, J. Educ. Behav. Stat. 37 (2012).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from safemerge.errors import ScoringError
from safemerge.inference.permutation import MAX_BITS, PValue, flip_p_value
from safemerge.inference.share import Z_95, student_quantile

MAX_P_VALUE = 0.05
"""Above this p-value, corrected for the comparisons of its family, no difference is claimed."""


@dataclass(frozen=True)
class Flips:
    """What a p-value is computed from, so that it can be computed more finely."""

    strata: tuple[np.ndarray[tuple[int], np.dtype[np.float64]], ...]
    weights: tuple[float, ...] = (1.0,)

    def p_value(self, bits: int | None = None) -> PValue:
        """Return the p-value; see `flip_p_value` for `bits`."""
        if len(self.strata) == 1:
            values = self.strata[0]
            if len(set(np.abs(values[values != 0]).tolist())) <= 1:
                exact = mcnemar_p_value(int((values > 0).sum()), int((values < 0).sum()))
                return PValue(exact, exact)
        if bits is None:
            return flip_p_value(self.strata, weights=self.weights)
        return flip_p_value(self.strata, weights=self.weights, bits=bits)


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
    p_value: float
    """Two-sided, of no difference: McNemar's exact test for independent verdicts of 0 and 1, else
    over all ways to exchange the sides of whole groups."""


def compare_paired(
    left: Sequence[float],
    right: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
) -> PairedComparison:
    """Compare two candidates' scores of the same samples, in the same order.

    Independent verdicts of 0 and 1 get the interval of `paired_share_interval`, graded or grouped
    scores that of `paired_mean_interval`. Nothing is drawn.

    Args:
        left: Scores of one candidate, each in [0, 1]; at least one.
        right: Scores of the other.
        groups: Group of each sample, e.g. its prompt; independent samples if left out.

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
        sums = group_sums(differences, groups)
        low, high = paired_mean_interval([sums], weights=[1.0])
        p_value = flip_p_value([sums[:, 0]]).middle
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


def paired_mean_interval(
    strata: Sequence[np.ndarray[tuple[int, int], np.dtype[np.float64]]],
    *,
    weights: Sequence[float],
) -> tuple[float, float]:
    """Return a 95 % interval of a weighted sum of mean differences, of graded or grouped scores.

    Student's interval over whole groups, each stratum with two groups more, one at the largest
    difference seen and one at its opposite (at 1 where none differs), as Bonett and Price add two
    pairs. So it has a width where nothing differs, and covers where most differences are 0 and a
    bootstrap's percentiles do not (design/judging.md has the coverage). One group alone tells
    nothing about others: the interval is all of [-1, 1].

    Args:
        strata: Sums of differences and sizes by group, see `group_sums`; one a suite.
        weights: Weight of each stratum's mean.

    Returns:
        Lower and upper end, within [-1, 1] times the sum of the weights.
    """
    centre, variance, fewest = 0.0, 0.0, min(map(len, strata))
    most = math.fsum(weights)
    for sums, weight in zip(strata, weights, strict=True):
        count, size = len(sums), float(sums[:, 1].sum()) / len(sums)
        mean = float(sums[:, 0].sum()) / (count * size)
        centre += weight * mean
        off = (sums[:, 0] - mean * sums[:, 1]) / size
        added = float(np.abs(sums[:, 0]).max()) / size or 1.0
        spread2 = (float(off @ off) + 2 * added**2) / (count + 1)
        variance += weight**2 * spread2 / (count + 2)
    if fewest == 1:
        return -most, most
    half = student_quantile(0.975, fewest - 1) * math.sqrt(variance)
    return max(-most, centre - half), min(most, centre + half)


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
            f"groups: needs one for each value; got {n} values, {len(labels)} groups."
        )
    place = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    found = np.zeros((len(place), 2))
    np.add.at(found, [place[label] for label in labels], np.column_stack([values, np.ones(n)]))
    return found


def holm_of_flips(family: Iterable[tuple[PValue, Flips | None]]) -> list[float]:
    """Return Holm's adjusted p-values of a family, certain as verdicts at `MAX_P_VALUE`.

    Where a p-value is known between two ends only, it is computed more finely until both are on
    one side of `MAX_P_VALUE`; one that still is not, at the finest, counts by its upper end.

    Args:
        family: Each p-value with what it was computed from; None: it stays as it is.
    """
    ends, flips = [], []
    for end, found in family:
        ends.append(end)
        flips.append(found)
    bits = 0
    while True:
        low, high = (holm_adjusted([end[side] for end in ends]) for side in (0, 1))
        unsure = [one <= MAX_P_VALUE < other for one, other in zip(low, high, strict=True)]
        if not any(unsure) or bits >= MAX_BITS:
            break
        bits = MAX_BITS
        for place, found in enumerate(flips):
            if found is not None and ends[place].low < ends[place].high:
                ends[place] = found.p_value(bits)
    middle = holm_adjusted([end.middle for end in ends])
    return [
        upper if open_ else value for value, upper, open_ in zip(middle, high, unsure, strict=True)
    ]


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
