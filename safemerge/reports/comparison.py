"""Paired comparisons of candidates on the same prompts: differences, p-values, verdicts.

The p-value alone decides whether two candidates differ, and it is computed, not sampled; the
interval beside it says by how much they may, one comparison at a time.

References:
    `safemerge.inference.paired` for intervals, `safemerge.inference.permutation` for the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from safemerge.config.metric import Direction, Unit
from safemerge.errors import StudyError
from safemerge.inference import (
    MAX_P_VALUE,
    Flips,
    PValue,
    group_sums,
    holm_of_flips,
    paired_mean_interval,
    paired_share_interval,
)
from safemerge.records import CandidateResult, Front, FrontPoint, Split

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
    """Lower end of the 95 % interval, of this comparison alone."""
    high: float | None
    n: int
    """Paired samples; of an aggregate, those of its smallest suite."""
    left_out: int
    """Samples without a verdict on one side or the other, over all suites compared."""
    p_value: float | None = None
    """Two-sided, of no difference: over all ways to exchange the sides of whole groups. Corrected
    for `num_comparisons` by Holm; None without pairs."""
    unit: Unit = "share"
    """Of the metric: how the difference is printed."""
    num_groups: int | None = None
    """Groups that the samples come in, of the suite with the fewest; None: each stands alone."""
    num_comparisons: int = 1
    """Comparisons of the family that the p-value is corrected for."""
    flips: Flips | None = field(default=None, compare=False, repr=False)
    bounds: PValue | None = field(default=None, compare=False, repr=False)
    """Ends of the p-value of this comparison alone."""

    @property
    def is_distinguishable(self) -> bool:
        """Whether the difference is significant: a p-value of at most `MAX_P_VALUE`."""
        return bool(self.value) and self.p_value is not None and self.p_value <= MAX_P_VALUE

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``not significant``, for the left candidate."""
        if not self.is_distinguishable or self.value is None:
            return "not significant"
        return "better" if (self.value > 0) == (self.direction == "maximize") else "worse"

    @property
    def correction(self) -> str:
        """What the p-value is corrected for, e.g. ``after correction for 12 comparisons``."""
        if self.num_comparisons == 1:
            return "in one comparison"
        return f"after correction for {self.num_comparisons} comparisons"

    def reversed(self) -> PairedDifference:
        """Return right minus left."""
        if self.value is None or self.low is None or self.high is None:
            return self
        return replace(self, value=-self.value, low=-self.high, high=-self.low)


@dataclass(frozen=True)
class Pair:
    """Two front points whose difference on one objective is not significant."""

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
) -> PairedDifference:
    """Compare two candidates on one metric, over the prompts that both answered.

    The statistic is the mean over suites of the mean over samples of (left - right). Verdicts
    of 0 and 1 of one suite get the interval of `paired_share_interval`, anything else that of
    `paired_mean_interval`. Samples of one group (see `Score.group`) stand and change their sign
    together. A sample counts only if both candidates have a verdict on every metric that is read
    from its suite; the others are left out and counted, never taken as 0.

    Args:
        left: One candidate, with per-sample scores.
        right: The other, on the same split.
        metric: Full metric name, ``suite.metric``, or an aggregate's name.
        mean_of: The full metric names that an aggregate is the mean of; empty for a plain
            metric.
        direction: The better direction; taken from the results' estimates if left out.
        seed: Of no effect: nothing is drawn. Kept for scripts that give one.

    Returns:
        The difference with its interval, in the metric's unit (a fraction for shares), and its
        p-value, not corrected.

    Raises:
        StudyError: If the two results are of different splits.
    """
    del seed
    return known_difference(left, right, metric, tuple(mean_of), direction, known={})


def known_difference(
    left: CandidateResult,
    right: CandidateResult,
    metric: str,
    mean_of: Sequence[str],
    direction: Direction | None,
    *,
    known: _Values,
) -> PairedDifference:
    """Compare as `paired_difference`; `known` spares reading a result twice while it is alive."""
    if left.split != right.split:
        raise StudyError(
            f"candidates {left.candidate} and {right.candidate}: must be compared on one split; "
            f"got {left.split} and {right.split}. Pass results of the same split."
        )
    estimate = left.metrics.get(metric) or right.metrics.get(metric)
    unit: Unit = "share" if estimate is None else estimate.unit
    if direction is None:
        direction = "maximize" if estimate is None else estimate.direction
    by_suite: dict[str, list[str]] = {}
    for name in mean_of or (metric,):
        suite, _, leaf = name.partition(".")
        by_suite.setdefault(suite, []).append(leaf)
    num_metrics = sum(len(leaves) for leaves in by_suite.values())
    strata: list[_Sums] = []
    weights: list[float] = []
    left_out = 0
    for suite, leaves in sorted(by_suite.items()):
        sums, missing = _suite_differences(left, right, suite, tuple(leaves), known)
        left_out += missing
        strata.append(sums)
        weights.append(len(leaves) / num_metrics)
    counts = [int(sums[:, 1].sum()) for sums in strata]
    if min(counts) == 0:
        return PairedDifference(metric, direction, None, None, None, 0, left_out, unit=unit)
    low, high = _interval(strata, weights)
    value = sum(
        weight * float(sums[:, 0].sum()) / n
        for sums, n, weight in zip(strata, counts, weights, strict=True)
    )
    # Scaled so that the mean over groups is the mean over samples.
    scaled = tuple(
        sums[:, 0] if len(sums) == n else sums[:, 0] * len(sums) / n
        for sums, n in zip(strata, counts, strict=True)
    )
    flips = Flips(scaled, tuple(weights))
    bounds = flips.p_value()
    is_grouped = any(len(sums) < n for sums, n in zip(strata, counts, strict=True))
    return PairedDifference(
        metric,
        direction,
        value,
        low,
        high,
        min(counts),
        left_out,
        bounds.middle,
        unit=unit,
        num_groups=min(map(len, strata)) if is_grouped else None,
        flips=flips,
        bounds=bounds,
    )


def _interval(strata: Sequence[_Sums], weights: Sequence[float]) -> tuple[float, float]:
    """Independent verdicts of 0 and 1 of one suite have their own interval."""
    if len(strata) == 1 and float(strata[0][:, 1].max()) == 1.0:
        values = strata[0][:, 0]
        if set(values.tolist()) <= {-1.0, 0.0, 1.0}:
            return paired_share_interval(
                int((values > 0).sum()), int((values < 0).sum()), len(values)
            )
    return paired_mean_interval(strata, weights=weights)


def indistinguishable_pairs(front: Front, *, split: Split = "report", seed: int = 0) -> list[Pair]:
    """Find the pairs of front points whose difference is not significant, by objective.

    Args:
        front: The front; its objectives carry ``mean_of`` where they are aggregates.
        split: The split compared on.
        seed: Of no effect, see `paired_difference`.

    Returns:
        One entry for each pair and objective whose p-value, corrected by Holm over all pairs and
        objectives, exceeds `MAX_P_VALUE`, or that has none; ordered as the front is. A run's
        report corrects for its other comparisons too, see `safemerge.reports.family`.
    """
    del seed
    known: _Values = {}
    compared = list(combinations(front.points, 2))
    found = [
        _point_differences(left, right, front.objectives, split, known=known)
        for left, right in compared
    ]
    corrected = iter(holm_corrected([item for row in found for item in row]))
    return [
        Pair(left.number, right.number, difference)
        for (left, right), row in zip(compared, found, strict=True)
        for difference in (next(corrected) for _ in row)
        if not difference.is_distinguishable
    ]


def holm_corrected(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return the comparisons of a family, their p-values corrected for their number by Holm.

    Each verdict is certain, see `holm_of_flips`. Those without a p-value stay without.
    """
    known = [item for item in differences if item.p_value is not None]
    adjusted = iter(
        holm_of_flips(
            (item.bounds or PValue(item.p_value or 0.0, item.p_value or 0.0), item.flips)
            for item in known
        )
    )
    return [
        item
        if item.p_value is None
        else replace(item, p_value=next(adjusted), num_comparisons=len(known))
        for item in differences
    ]


def point_differences(
    left: FrontPoint,
    right: FrontPoint,
    *,
    objectives: Sequence[Mapping[str, object]],
    split: Split = "report",
) -> list[PairedDifference]:
    """Compare two published points on every objective, without correction.

    Args:
        left: One point.
        right: The other.
        objectives: Entries as in `Front.objectives`.
        split: The split compared on.

    Returns:
        One paired difference an objective, in their order.
    """
    return _point_differences(left, right, objectives, split, known={})


def _point_differences(
    left: FrontPoint,
    right: FrontPoint,
    objectives: Sequence[Mapping[str, object]],
    split: Split,
    *,
    known: _Values,
) -> list[PairedDifference]:
    results = (left.report, right.report) if split == "report" else (left.search, right.search)
    differences = []
    for objective in objectives:
        mean_of = objective.get("mean_of")
        parts = [str(name) for name in mean_of] if isinstance(mean_of, list) else []
        direction: Direction = "minimize" if objective["direction"] == "minimize" else "maximize"
        metric = str(objective["metric"])
        differences.append(known_difference(*results, metric, parts, direction, known=known))
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
