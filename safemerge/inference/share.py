"""Intervals of shares: Wilson's, and Wilson's for samples that come in groups.

References:
    Wilson, Probable inference, JASA 22 (1927). Dean and Pagano, Evaluating confidence interval
    methods for binomial proportions in clustered surveys, J. Survey Stat. Methodol. 3 (2015):
    Wilson's interval at the effective sample size. Abramowitz and Stegun, *Handbook of
    Mathematical Functions*, 26.7.3, 26.7.4 and 26.7.5, for Student's t.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

from safemerge.errors import ScoringError

Z_95 = 1.959963984540054
"""Normal quantile of a two-sided 95 % interval."""

_EXACT_DEGREES = 400
"""Up to here Student's distribution is summed exactly; the series beyond errs below 1e-9."""


def wilson_interval(mean: float, n: float, *, critical: float = Z_95) -> tuple[float, float]:
    """Return the Wilson interval of a share, 95 % by default.

    Args:
        mean: Observed share in [0, 1].
        n: Sample size, at least 1; need not be whole (an effective sample size).
        critical: Two-sided quantile, above 0.

    Returns:
        Lower and upper end, within [0, 1].

    Raises:
        ScoringError: If `n` is below 1 or `mean` is outside [0, 1].
    """
    if not n >= 1 or not 0.0 <= mean <= 1.0:
        raise ScoringError(f"wilson interval: needs n >= 1 and a share; got n={n}, mean={mean}.")
    z2 = critical * critical
    centre = (mean + z2 / (2 * n)) / (1 + z2 / n)
    half = critical / (1 + z2 / n) * math.sqrt(mean * (1 - mean) / n + z2 / (4 * n * n))
    # NOTE: at a share of 0 or 1 rounding would leave the observed value just outside.
    return max(0.0, min(centre - half, mean)), min(1.0, max(centre + half, mean))


def design_effect(values: Sequence[float], groups: Sequence[Hashable]) -> float:
    """Return by how much grouping inflates the variance of a share, at least 1.

    The variance of the mean by groups, ``G/(G-1) * sum_g (sum_i (x_gi - m))^2 / n^2``, over
    that of ``n`` independent samples, ``m(1-m)/n``. Few groups that hold the rarer value say
    little about it, so it is averaged with ``n / G`` (whole groups are one sample each): the
    measured effect has a weight of one for each group that is not all 0, or not all 1 if those
    are fewer, and ``n / G``, where it is larger, a weight of one. Where the values don't vary, or
    with a single group, ``n / G`` is all there is.

    Args:
        values: Score of each sample, in [0, 1]; at least one.
        groups: Group of each sample, e.g. its prompt.

    Returns:
        Design effect in [1, n].

    Raises:
        ScoringError: If there is no value or the lengths differ.
    """
    n = len(values)
    if n == 0 or len(groups) != n:
        raise ScoringError(
            f"design effect: needs one group for each value; got {n} values, {len(groups)} groups."
        )
    mean = math.fsum(values) / n
    by_group: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        by_group.setdefault(group, []).append(value)
    num_groups = len(by_group)
    whole = n / num_groups
    independent = mean * (1 - mean) / n
    if num_groups == 1 or independent <= 1e-12:
        return whole
    squares = math.fsum(
        math.fsum(value - mean for value in found) ** 2 for found in by_group.values()
    )
    grouped = num_groups / (num_groups - 1) * squares / n**2
    measured = min(float(n), max(1.0, grouped / independent))
    informative = min(
        sum(any(value != end for value in found) for found in by_group.values())
        for end in (0.0, 1.0)
    )
    return (informative * measured + max(whole, measured)) / (informative + 1)


def clustered_interval(values: Sequence[float], groups: Sequence[Hashable]) -> tuple[float, float]:
    """Return a 95 % interval of a mean share whose samples come in groups.

    Wilson's interval at the effective sample size ``n / design_effect``, with Student's
    quantile at (groups - 1) degrees of freedom. With every sample in a group of its own it is
    the plain Wilson interval. Groups never narrow it.

    Args:
        values: Score of each sample, in [0, 1]; at least one.
        groups: Group of each sample, e.g. its prompt.

    Returns:
        Lower and upper end, within [0, 1].

    Raises:
        ScoringError: If there is no value, the lengths differ, or a value is no share.
    """
    effect = design_effect(values, groups)
    n, num_groups = len(values), len(set(groups))
    mean = min(1.0, max(0.0, math.fsum(values) / n))
    if any(not 0.0 <= value <= 1.0 for value in values):
        raise ScoringError("clustered interval: values must be in [0, 1]; got one outside.")
    if num_groups == n:
        return wilson_interval(mean, n)
    critical = student_quantile(0.975, max(1, num_groups - 1))
    return wilson_interval(mean, max(1.0, n / effect), critical=critical)


def student_p_value(statistic: float, degrees: int) -> float:
    """Return the two-sided p-value of Student's t: the probability of a larger absolute value.

    Args:
        statistic: The observed value; its sign has no effect.
        degrees: Degrees of freedom, in 1 to 400.

    Raises:
        ScoringError: If `degrees` is out of range.
    """
    if not 1 <= degrees <= _EXACT_DEGREES:
        raise ScoringError(f"student: degrees must be in [1, {_EXACT_DEGREES}]; got {degrees}.")
    angle = math.atan2(abs(statistic), math.sqrt(degrees))
    return max(0.0, 1.0 - _student_mass(angle, degrees))


def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t distribution.

    Args:
        probability: In (0, 1).
        degrees: Degrees of freedom, at least 1.

    Returns:
        The value below which that share of the distribution lies.

    Raises:
        ScoringError: If an argument is out of range.
    """
    if not 0.0 < probability < 1.0 or degrees < 1:
        raise ScoringError(
            "student quantile: needs a probability in (0, 1) and degrees >= 1; "
            f"got {probability} and {degrees}."
        )
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    if degrees > _EXACT_DEGREES:
        z = NormalDist().inv_cdf(probability)
        first = (z**3 + z) / 4
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + first / degrees + second / degrees**2 + third / degrees**3
    wanted = 2 * probability - 1
    low, high = 0.0, math.pi / 2  # the angle atan(t / sqrt(degrees))
    for _ in range(80):
        middle = (low + high) / 2
        if _student_mass(middle, degrees) < wanted:
            low = middle
        else:
            high = middle
    return math.tan((low + high) / 2) * math.sqrt(degrees)


def _student_mass(angle: float, degrees: int) -> float:
    """Probability that abs(T) is below sqrt(degrees) * tan(angle)."""
    cosine2 = math.cos(angle) ** 2
    odd = degrees % 2 == 1
    term, total = 1.0, 0.0
    for power in range(degrees // 2):
        total += term
        term *= cosine2 * ((2 * power + 2) / (2 * power + 3) if odd else 1.0)
        if not odd:
            term *= (2 * power + 1) / (2 * power + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    return math.sin(angle) * total
