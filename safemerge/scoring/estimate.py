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

import numpy as np

from safemerge.config.metric import Direction, Metric, joint_unit
from safemerge.errors import ScoringError
from safemerge.inference import clustered_interval
from safemerge.records import MetricEstimate, Score

NUM_RESAMPLES = 200
"""Of the bootstrap: a corpus score is computed anew for each."""

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


def bootstrap_estimate(
    metric: str,
    values: Sequence[_Item],
    aggregate: Callable[[Sequence[_Item]], float],
    direction: Direction,
    *,
    groups: Sequence[Hashable] | None = None,
) -> MetricEstimate:
    """Aggregate values that are more than numbers, with a percentile bootstrap.

    Args:
        metric: Full name of the metric.
        values: What is aggregated, at least one.
        aggregate: From values to the metric; called for each of `NUM_RESAMPLES` resamples.
        direction: Which way is better.
        groups: Group of each value; whole groups are drawn. Left out, each stands alone.

    Raises:
        ScoringError: If the metric, or that of a resample, is not finite.
    """
    members: dict[Hashable, list[_Item]] = {}
    for place, item in enumerate(values):
        members.setdefault(place if groups is None else groups[place], []).append(item)
    clusters = list(members.values())
    draw = np.random.default_rng(0)
    value = aggregate(values)
    drawn = (draw.integers(len(clusters), size=len(clusters)) for _ in range(NUM_RESAMPLES))
    resampled = [aggregate([item for at in places for item in clusters[at]]) for places in drawn]
    if not math.isfinite(value) or not all(map(math.isfinite, resampled)):
        raise ScoringError(
            f"{metric}: must be finite; got {value}. The candidate's log-probabilities overflow."
        )
    low, high = np.percentile(resampled, [2.5, 97.5])
    return MetricEstimate(
        metric=metric,
        value=value,
        low=min(float(low), value),
        high=max(float(high), value),
        n=len(values),
        direction=direction,
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
        The mean; `n` and `unscored` are sums; value None if any part has none.

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
    ends = [
        (part.value, part.low, part.high)
        for part in parts
        if part.value is not None and part.low is not None and part.high is not None
    ]
    direction = parts[0].direction
    unit = joint_unit([part.unit for part in parts])
    if len(ends) < len(parts):
        return MetricEstimate(
            metric=metric,
            value=None,
            low=None,
            high=None,
            n=n,
            unscored=unscored,
            direction=direction,
            unit=unit,
        )
    count = len(ends)
    mean = math.fsum(value for value, _, _ in ends) / count
    below = math.sqrt(math.fsum((value - low) ** 2 for value, low, _ in ends)) / count
    above = math.sqrt(math.fsum((high - value) ** 2 for value, _, high in ends)) / count
    return MetricEstimate(
        metric=metric,
        value=mean,
        low=mean - below,
        high=mean + above,
        n=n,
        unscored=unscored,
        direction=direction,
        unit=unit,
    )
