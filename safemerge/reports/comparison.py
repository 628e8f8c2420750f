"""Paired comparisons of candidates on the same prompts: differences with 95 % intervals.

References:
    `safemerge.statistics.paired` for intervals of shares and for the tests.
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, chapter 13 (percentile
    interval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from safemerge.config.suite import Direction
from safemerge.errors import StudyError
from safemerge.records import CandidateResult, Front, FrontPoint, Split
from safemerge.statistics import (
    group_sums,
    holm_adjusted,
    mcnemar_p_value,
    paired_share_interval,
    resampled_means,
    sign_flip_p_value,
)

MIN_PAIRS = 10
"""Fewer independent pairs (groups, where samples come in groups) than this never tell two
candidates apart: a percentile interval over a handful of values is too narrow to be believed."""

NUM_RESAMPLES = 2000
"""Bootstrap resamples of a comparison."""

MAX_P_VALUE = 0.05
"""Above this p-value, corrected where a table has more than one, nothing is told apart."""

_FLIPS_A_COMPARISON = 40
"""Random sign flips for each comparison of a table, so that Holm's first step can come to half
of `MAX_P_VALUE`."""

_Sums = np.ndarray[tuple[int, int], np.dtype[np.float64]]
_Values = dict[tuple[int, str, tuple[str, ...]], dict[str, float]]
"""Value by sample id, by (identity of the result, suite, metrics read)."""


@dataclass(frozen=True)
class PairedDifference:
    """Left minus right on one metric, over the samples that both have a verdict for."""

    metric: str
    direction: Direction
    value: float | None
    """Mean difference, in the metric's unit; None if no sample has both verdicts."""
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    n: int
    """Paired samples; of an aggregate, those of its smallest suite."""
    left_out: int
    """Samples without a verdict on one side or the other, over all suites compared."""
    p_value: float | None = None
    """Two-sided, of no difference: exact where all that differ do so by one size (McNemar's test
    for verdicts of 0 and 1), else by random sign flips, of whole groups. Not corrected for the
    number of comparisons, unless a table says so; None without pairs."""
    num_groups: int | None = None
    """Groups that the samples come in, of the suite with the fewest; None: each stands alone."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval excludes 0, on at least `MIN_PAIRS` independent samples.

        The p-value, corrected or not, must agree: at most `MAX_P_VALUE`.
        """
        pairs = self.n if self.num_groups is None else self.num_groups
        if self.low is None or self.high is None or pairs < MIN_PAIRS:
            return False
        if self.p_value is not None and self.p_value > MAX_P_VALUE:
            return False
        return self.low > 0 or self.high < 0

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``not told apart``, for the left candidate."""
        if not self.is_distinguishable or self.low is None:
            return "not told apart"
        return "better" if (self.low > 0) == (self.direction == "maximize") else "worse"


@dataclass(frozen=True)
class Pair:
    """Two front points that the intervals cannot tell apart on one objective."""

    left: int
    """Trial number."""
    right: int
    """Trial number, of a later point of the front."""
    difference: PairedDifference


def paired_difference(
    left: CandidateResult,
    right: CandidateResult,
    *,
    metric: str,
    mean_of: Sequence[str] = (),
    direction: Direction | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    num_comparisons: int = 1,
) -> PairedDifference:
    """Compare two candidates on one metric, over the prompts that both answered.

    The statistic is the mean over suites of the mean over samples of (left - right). Verdicts
    of 0 and 1 of one suite get the interval of `paired_share_interval`, which has a width even
    where no verdict differs. Else samples are drawn with replacement within each suite, and
    the interval holds the 2.5th to the 97.5th percentile. Samples of one group (see
    `Score.group`) are drawn, and change their sign, together. A sample counts only if both
    candidates have a verdict on every metric that is read from its suite; the others are left
    out and counted, never taken as 0. The same seed gives the same interval, whatever else is
    compared.

    Args:
        left: One candidate, with per-sample scores.
        right: The other, on the same split.
        metric: Full metric name, ``suite.metric``, or an aggregate's name.
        mean_of: The full metric names that an aggregate is the mean of; empty for a plain
            metric.
        direction: The better direction; taken from the results' estimates if left out.
        seed: Seed of the resampling, 0 or more.
        num_resamples: Bootstrap resamples, at least 1.
        num_comparisons: Comparisons that the p-value is corrected for by `holm_corrected`: so
            many more signs are flipped that a small p-value can still be told.

    Returns:
        The difference with its interval, in the metric's unit (a fraction for shares).

    Raises:
        StudyError: If the two results are of different splits.
    """
    return _paired_difference(
        left,
        right,
        metric,
        tuple(mean_of),
        direction,
        seed,
        num_resamples,
        num_comparisons=num_comparisons,
        known={},
    )


def _paired_difference(
    left: CandidateResult,
    right: CandidateResult,
    metric: str,
    mean_of: Sequence[str],
    direction: Direction | None,
    seed: int,
    num_resamples: int,
    *,
    num_comparisons: int,
    known: _Values,
) -> PairedDifference:
    """Compare two candidates; `known` spares reading a result twice while it is alive."""
    if left.split != right.split:
        raise StudyError(
            f"candidates {left.candidate} and {right.candidate}: must be compared on one split; "
            f"got {left.split} and {right.split}. Pass results of the same split."
        )
    if direction is None:
        estimate = left.metrics.get(metric) or right.metrics.get(metric)
        direction = estimate.direction if estimate is not None else "maximize"
    by_suite: dict[str, list[str]] = {}
    for name in mean_of or (metric,):
        suite, _, leaf = name.rpartition(".")
        by_suite.setdefault(suite, []).append(leaf)
    num_metrics = sum(len(leaves) for leaves in by_suite.values())
    generator = np.random.default_rng(seed)
    total = 0.0
    strata: list[_Sums] = []
    weights: list[float] = []
    resampled = np.zeros(num_resamples)
    counts: list[int] = []
    left_out = 0
    for suite, leaves in sorted(by_suite.items()):
        sums, missing = _suite_differences(left, right, suite, tuple(leaves), known)
        counts.append(int(sums[:, 1].sum()))
        left_out += missing
        if len(sums) == 0:
            continue
        share = len(leaves) / num_metrics
        strata.append(sums)
        weights.append(share)
        total += share * float(sums[:, 0].sum() / counts[-1])
        resampled += share * resampled_means(sums, generator, num_resamples=num_resamples)
    if min(counts) == 0:
        return PairedDifference(metric, direction, None, None, None, 0, left_out)
    low, high = (float(end) for end in np.percentile(resampled, [2.5, 97.5]))
    exact = _verdict_interval(strata[0]) if num_metrics == 1 else None
    if exact is not None and (low == high or len(strata[0]) == counts[0]):
        low, high = exact
    num_flips = max(num_resamples, _FLIPS_A_COMPARISON * num_comparisons)
    is_grouped = any(len(sums) < n for sums, n in zip(strata, counts, strict=True))
    return PairedDifference(
        metric,
        direction,
        total,
        low,
        high,
        min(counts),
        left_out,
        _p_value(strata, weights, seed=seed, num_flips=num_flips),
        num_groups=min(map(len, strata)) if is_grouped else None,
    )


def _verdict_interval(sums: _Sums) -> tuple[float, float] | None:
    """Interval of verdicts of 0 and 1, a group whose verdicts agree taken for one sample.

    It has a width where a bootstrap has none; None where a group's verdicts differ.
    """
    means = sums[:, 0] / sums[:, 1]
    if not set(means.tolist()) <= {-1.0, 0.0, 1.0}:
        return None
    return paired_share_interval(int((means > 0).sum()), int((means < 0).sum()), len(means))


def _p_value(
    strata: Sequence[_Sums], weights: Sequence[float], *, seed: int, num_flips: int
) -> float:
    """The sign of a whole group's sum is flipped; exact where all sums are of one size."""
    if len(strata) == 1 and len({abs(value) for value in strata[0][:, 0].tolist() if value}) <= 1:
        values = strata[0][:, 0]
        return mcnemar_p_value(int((values > 0).sum()), int((values < 0).sum()))
    # Scaled so that the mean over groups is the mean over samples.
    values_by_group = [sums[:, 0] * len(sums) / sums[:, 1].sum() for sums in strata]
    return sign_flip_p_value(values_by_group, weights=weights, seed=seed, num_flips=num_flips)


def indistinguishable_pairs(
    front: Front, *, split: Split = "report", seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> list[Pair]:
    """Find the pairs of front points that the intervals cannot tell apart, by objective.

    Args:
        front: The front; its objectives carry ``mean_of`` where they are aggregates.
        split: The split compared on.
        seed: Seed of the resampling.
        num_resamples: Bootstrap resamples of each comparison.

    Returns:
        One entry for each pair and objective whose 95 % interval of the paired difference
        holds 0, whose p-value, Holm-corrected over all pairs of the objective, exceeds
        `MAX_P_VALUE`, or that share fewer than `MIN_PAIRS` samples; ordered as the front is.
    """
    known: _Values = {}
    compared = list(combinations(front.points, 2))
    found = [
        _point_differences(
            left,
            right,
            front.objectives,
            split,
            seed,
            num_resamples,
            num_comparisons=len(compared),
            known=known,
        )
        for left, right in compared
    ]
    by_objective = [holm_corrected(row) for row in zip(*found, strict=True)]
    return [
        Pair(left.number, right.number, difference)
        for (left, right), row in zip(compared, zip(*by_objective, strict=True), strict=True)
        for difference in row
        if not difference.is_distinguishable
    ]


def holm_corrected(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return the comparisons of a table, their p-values corrected for their number by Holm.

    Those without a p-value stay without.
    """
    known = [item.p_value for item in differences if item.p_value is not None]
    adjusted = iter(holm_adjusted(known))
    return [
        item if item.p_value is None else replace(item, p_value=next(adjusted))
        for item in differences
    ]


def point_differences(
    left: FrontPoint,
    right: FrontPoint,
    *,
    objectives: Sequence[Mapping[str, object]],
    split: Split = "report",
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> list[PairedDifference]:
    """Compare two published points on every objective.

    Args:
        left: One point.
        right: The other.
        objectives: Entries as in `Front.objectives`.
        split: The split compared on.
        seed: Seed of the resampling.
        num_resamples: Bootstrap resamples of each comparison.

    Returns:
        One paired difference an objective, in their order.
    """
    return _point_differences(
        left, right, objectives, split, seed, num_resamples, num_comparisons=1, known={}
    )


def _point_differences(
    left: FrontPoint,
    right: FrontPoint,
    objectives: Sequence[Mapping[str, object]],
    split: Split,
    seed: int,
    num_resamples: int,
    *,
    num_comparisons: int,
    known: _Values,
) -> list[PairedDifference]:
    results = (left.report, right.report) if split == "report" else (left.search, right.search)
    differences = []
    for objective in objectives:
        mean_of = objective.get("mean_of")
        parts = [str(name) for name in mean_of] if isinstance(mean_of, list) else []
        direction: Direction = "minimize" if objective["direction"] == "minimize" else "maximize"
        metric = str(objective["metric"])
        differences.append(
            _paired_difference(
                *results,
                metric,
                parts,
                direction,
                seed,
                num_resamples,
                num_comparisons=num_comparisons,
                known=known,
            )
        )
    return differences


def _suite_differences(
    left: CandidateResult,
    right: CandidateResult,
    suite: str,
    leaves: tuple[str, ...],
    known: _Values,
) -> tuple[_Sums, int]:
    """Sums of a suite's per-sample differences and sizes, by group, and the samples left out."""
    values = []
    for result in (left, right):
        key = (id(result), suite, leaves)
        if key not in known:
            known[key] = {
                score.sample_id: sum(score.values[leaf] for leaf in leaves) / len(leaves)
                for score in result.scores.get(suite, [])
                if all(leaf in score.values for leaf in leaves)
            }
        values.append(known[key])
    scores = [score for result in (left, right) for score in result.scores.get(suite, [])]
    asked = {score.sample_id for score in scores}
    groups = {score.sample_id: score.group for score in scores if score.group is not None}
    shared = sorted(values[0].keys() & values[1].keys())
    if not shared:
        return np.zeros((0, 2)), len(asked)
    differences = [values[0][key] - values[1][key] for key in shared]
    sums = group_sums(differences, [groups.get(key, key) for key in shared])
    return sums, len(asked) - len(shared)
