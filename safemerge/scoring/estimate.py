"""Scores to metrics with 95 % intervals.

References:
    Shares: see `safemerge.inference.share`. Zou and Donner, Construction of confidence limits
    about effect measures, Stat. Med. 27 (2008), for means of several metrics (MOVER: the method
    of variance estimates recovery).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

from safemerge.config.metric import Direction, Metric, joint_unit
from safemerge.errors import ScoringError
from safemerge.inference import clustered_interval, jackknife_interval
from safemerge.records import MetricEstimate, Score

_Item = TypeVar("_Item")


def estimate(
    metric: str,
    scores: Iterable[Score],
    *,
    key: str,
    direction: Direction,
    groups: Mapping[str, Hashable] | None = None,
) -> MetricEstimate:
    """Aggregate one value of many scores.

    Args:
        metric: Full name of the metric.
        scores: Scores of one suite; unscored ones are counted apart.
        key: Name of the value in each score.
        direction: Which way is better.
        groups: Group by sample id, of samples that share a prompt; a sample that is not in it
            stands for itself.

    Returns:
        Mean of the scored samples with its Wilson interval, widened where samples come in
        groups; value None if none was scored.
    """
    scores = list(scores)
    scored = [score for score in scores if key in score.values]
    values = [score.values[key] for score in scored]
    unscored = len(scores) - len(values)
    if not values:
        return MetricEstimate(
            metric=metric,
            value=None,
            low=None,
            high=None,
            n=0,
            unscored=unscored,
            direction=direction,
        )
    mean = math.fsum(values) / len(values)
    group_by_id = groups or {}
    low, high = clustered_interval(
        values, [group_by_id.get(score.sample_id, score.sample_id) for score in scored]
    )
    return MetricEstimate(
        metric=metric,
        value=mean,
        low=low,
        high=high,
        n=len(values),
        unscored=unscored,
        direction=direction,
    )


def aggregate_estimate(
    metric: str,
    values: Sequence[_Item],
    aggregate: Callable[[Sequence[_Item]], float],
    row: Metric,
    groups: Sequence[str],
) -> MetricEstimate:
    """Aggregate values that are more than numbers, with a jackknife interval over groups.

    Args:
        metric: Full name of the metric.
        values: What is aggregated, at least one.
        aggregate: From values to the metric; called about once a group.
        row: Direction and unit.
        groups: Group of each value.

    Raises:
        ScoringError: If the metric, or that of all groups but one, is not finite.
    """
    try:
        value, low, high = jackknife_interval(
            lambda places: aggregate([values[place] for place in places]),
            groups,
            is_share=row.unit == "share",
        )
    except ScoringError as error:
        raise ScoringError(
            f"{metric}: {error} The candidate's log-probabilities overflow."
        ) from error
    return MetricEstimate(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(values),
        direction=row.direction,
        unit=row.unit,
    )


def suite_estimates(
    suite: str,
    metrics: Iterable[Metric],
    scores: Sequence[Score],
    *,
    groups: Mapping[str, Hashable] | None = None,
) -> list[MetricEstimate]:
    """Return every metric of a suite, in the order of its rows; see `estimate`."""
    return [
        estimate(
            f"{suite}.{row.name}", scores, key=row.name, direction=row.direction, groups=groups
        )
        for row in metrics
    ]


def mean_estimate(metric: str, parts: Sequence[MetricEstimate]) -> MetricEstimate:
    """Return the plain mean of independent metrics with a MOVER interval.

    Each part's distance from its value to its interval's end adds in quadrature, divided by
    the number of parts.

    Args:
        metric: Name of the aggregate.
        parts: At least one metric, all with the same direction, on different samples.

    Returns:
        The mean; `n` and `unscored` are sums; value, or interval, None if any part has none.

    Raises:
        ScoringError: If there is no part or the directions differ.
    """
    directions = {part.direction for part in parts}
    if len(directions) != 1:
        raise ScoringError(
            f"aggregate '{metric}': parts must share one direction; got {sorted(directions)}. "
            "Aggregate metrics that improve the same way."
        )
    n, unscored = sum(part.n for part in parts), sum(part.unscored for part in parts)
    count = len(parts)
    values = [part.value for part in parts if part.value is not None]
    mean = math.fsum(values) / count if len(values) == count else None

    def end(ends: Iterable[float | None], sign: int) -> float | None:
        away = [value - end for value, end in zip(values, ends, strict=False) if end is not None]
        if mean is None or len(away) < count:
            return None
        return mean + sign * math.sqrt(math.fsum(one**2 for one in away)) / count

    return MetricEstimate(
        metric=metric,
        value=mean,
        low=end((part.low for part in parts), -1),
        high=end((part.high for part in parts), 1),
        n=n,
        unscored=unscored,
        direction=parts[0].direction,
        unit=joint_unit([part.unit for part in parts]),
    )
