"""A few whole repetitions (seeds): mean, spread, interval; and paired over prompts.

With three repetitions Student's interval is wide (4.3 standard errors); that is what three
repetitions know.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from safemerge.errors import ScoringError
from safemerge.inference.paired import Flips
from safemerge.inference.share import student_p_value, student_quantile


class Spread(NamedTuple):
    """Values of several repetitions."""

    mean: float
    sd: float | None
    """Sample standard deviation (n - 1); None for one repetition."""
    low: float | None
    """Lower end of Student's 95 % interval of the mean; None for one repetition."""
    high: float | None
    n: int
    """Repetitions."""


class RepeatedComparison(NamedTuple):
    """Left minus right over repetitions of both."""

    difference: Spread
    """Paired by repetition."""
    left_only: int
    """Groups of samples that left scores higher on, over all repetitions together."""
    right_only: int
    num_samples: int
    """Samples that all repetitions of both answered."""
    num_groups: int
    """Groups that they come in; equal to `num_samples` if they are independent."""
    flips: Flips
    """Over prompts, given these models: all ways to exchange the sides of whole groups."""
    p_seeds: float | None
    """Two-sided, of Student's paired test over repetitions; None for one repetition."""


def spread(values: Sequence[float]) -> Spread:
    """Return mean, sample standard deviation and Student's 95 % interval.

    Args:
        values: One per repetition; at least one.

    Raises:
        ScoringError: If there is no value.
    """
    n = len(values)
    if n == 0:
        raise ScoringError("spread: needs at least one repetition; got none.")
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(mean, None, None, None, 1)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_quantile(0.975, n - 1) * sd / math.sqrt(n)
    return Spread(mean, sd, mean - half, mean + half, n)


def compare_repeated(
    left: Sequence[Mapping[str, float]],
    right: Sequence[Mapping[str, float]],
    *,
    groups: Mapping[str, str] | None = None,
) -> RepeatedComparison:
    """Compare two methods' scores on the same samples in the same repetitions.

    Two questions, two answers. Would other seeds show it: Student's paired test and interval over
    repetitions. Would other samples: a paired randomisation test over groups of samples, each
    with its sum over repetitions, since answers of several repetitions to one sample, or to
    samples that share a prompt, are not independent.

    Args:
        left: Score in [0, 1] by sample, one mapping per repetition.
        right: The other method's, in the same order of repetitions.
        groups: Group by sample, of samples that share one; others stand for themselves.

    Raises:
        ScoringError: If the numbers of repetitions differ, or no sample was scored in all.
    """
    if len(left) != len(right) or not left:
        raise ScoringError(
            "repeated comparison: needs the same repetitions on both sides; "
            f"got {len(left)} and {len(right)}."
        )
    common = set.intersection(*(set(item) for item in (*left, *right)))
    if not common:
        raise ScoringError("repeated comparison: some sample must be scored in all; got none.")
    kept = sorted(common)
    # Sums of 0 and 1 are whole numbers, so that equal means are equal.
    by_group: dict[tuple[str, str], list[str]] = {}
    for key in kept:
        group = (groups or {}).get(key)
        by_group.setdefault(("", key) if group is None else ("group", group), []).append(key)
    per_group = [
        math.fsum(item[key] for item in left for key in keys)
        - math.fsum(item[key] for item in right for key in keys)
        for keys in by_group.values()
    ]
    differences = [
        math.fsum(one[key] - other[key] for key in kept) / len(kept)
        for one, other in zip(left, right, strict=True)
    ]
    left_only = sum(value > 1e-9 for value in per_group)
    right_only = sum(value < -1e-9 for value in per_group)
    over_seeds = spread(differences)
    return RepeatedComparison(
        over_seeds,
        left_only,
        right_only,
        len(kept),
        len(by_group),
        Flips((np.asarray(per_group),)),
        _p_seeds(over_seeds),
    )


def _p_seeds(found: Spread) -> float | None:
    """Equal differences in all repetitions: 0 is certain to differ from them, or to be them."""
    if found.sd is None:
        return None
    if found.sd <= 1e-12:
        return float(abs(found.mean) <= 1e-12)
    return student_p_value(found.mean / (found.sd / math.sqrt(found.n)), found.n - 1)
