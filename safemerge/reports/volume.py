"""Hypervolumes of runs on the same prompts, with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from safemerge.config.base import StrictModel
from safemerge.config.metric import Metric
from safemerge.pareto import hypervolume
from safemerge.records import CandidateResult, Score

DRAWS = 1000
"""Resamples of the prompts."""

_Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Volume(StrictModel):
    """A hypervolume, or a difference of two."""

    value: float
    low: float | None
    """Lower end of the 95 % interval over prompts; None where values are no means of scores."""
    high: float | None


def volumes(
    results: Sequence[Sequence[CandidateResult]],
    metrics: Sequence[Metric],
    reference: Sequence[float],
    *,
    seed: int = 0,
) -> tuple[list[Volume | None], list[Volume | None]]:
    """Measure the hypervolume of each run's points against one reference.

    The interval is the basic bootstrap's over prompts (groups of prompts where there are groups):
    the points stay, every run sees the same resamples. The largest of several noisy values is
    too large on average, and a resample's more so; the basic interval takes that off, so that it
    may lie below the value. The search's own chance is not in it.

    Args:
        results: Points of each run that keep their limits, all on one split.
        metrics: The objectives.
        reference: Of the hypervolume, shape (objectives,).
        seed: Of the resamples.

    Returns:
        The hypervolume of each run, and its difference to the first run's (None for the first).

    References:
        Davison, Hinkley: Bootstrap Methods and their Application (1997), section 5.2.1.
    """
    directions = [metric.direction for metric in metrics]

    def volume(rows: Sequence[Sequence[float]]) -> float:
        return hypervolume(rows, reference, directions)

    found = [
        volume([[item.value(metric.name) for metric in metrics] for item in points])
        for points in results
    ]
    drawn = _resampled(results, metrics, seed)
    if drawn is None:
        plain = [Volume(value=value, low=None, high=None) for value in found]
        gains = [Volume(value=value - found[0], low=None, high=None) for value in found[1:]]
        return [*plain], [None, *gains]
    replicates = [
        np.array([volume(draw[:, index].tolist()) for index in range(DRAWS)]) for draw in drawn
    ]
    own = [_interval(value, draws) for value, draws in zip(found, replicates, strict=True)]
    gained = [
        _interval(value - found[0], draws - replicates[0])
        for value, draws in zip(found[1:], replicates[1:], strict=True)
    ]
    return [item.model_copy(update={"low": max(0.0, item.low or 0.0)}) for item in own], [
        None,
        *gained,
    ]


def _interval(value: float, draws: _Array) -> Volume:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Volume(value=value, low=2 * value - float(high), high=2 * value - float(low))


def _resampled(
    results: Sequence[Sequence[CandidateResult]], metrics: Sequence[Metric], seed: int
) -> list[_Array] | None:
    """Objective values by run, shape (points, draws, objectives); None if they are no means."""
    generator = np.random.default_rng(seed)
    leaves = list(dict.fromkeys(leaf for item in metrics for leaf in item.mean_of or (item.name,)))
    points = [item for run in results for item in run]
    by_leaf: dict[str, _Array] = {}
    weights: dict[str, tuple[list[str], _Array]] = {}
    for leaf in leaves:
        suite, _, key = leaf.partition(".")
        if suite not in weights:
            weights[suite] = _weights(points, suite, generator)
        ids, drawn = weights[suite]
        places = {identity: place for place, identity in enumerate(ids)}
        values = np.full((len(points), len(ids)), np.nan)
        for row, point in enumerate(points):
            for score in point.scores.get(suite, []):
                if key in score.values:
                    values[row, places[score.sample_id]] = score.values[key]
        known = ~np.isnan(values)
        if not _are_means(values, known, points, leaf):
            return None
        sums = drawn @ np.where(known, values, 0.0).T
        counts = drawn @ known.astype(float).T
        # A resample without a scored prompt says nothing: it gets the mean of all.
        means = np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1)
        by_leaf[leaf] = np.where(counts > 0, sums / np.maximum(counts, 1e-12), means).T
    objectives = np.stack(
        [
            np.mean([by_leaf[leaf] for leaf in metric.mean_of or (metric.name,)], axis=0)
            for metric in metrics
        ],
        axis=-1,
    )
    ends = np.cumsum([len(run) for run in results])[:-1]
    return list(np.split(objectives, ends))


def _weights(
    points: Sequence[CandidateResult], suite: str, generator: np.random.Generator
) -> tuple[list[str], _Array]:
    """Sample ids of a suite, and how often each resample takes each, shape (draws, samples)."""
    scores: dict[str, Score] = {}
    for point in points:
        for score in point.scores.get(suite, []):
            scores.setdefault(score.sample_id, score)
    ids = sorted(scores)
    groups = [scores[identity].group or identity for identity in ids]
    names = sorted(set(groups))
    place = {name: index for index, name in enumerate(names)}
    if not names:
        return ids, np.zeros((DRAWS, 0))
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return ids, counts[:, [place[name] for name in groups]].astype(float)


def _are_means(
    values: _Array, known: np.ndarray, points: Sequence[CandidateResult], leaf: str
) -> bool:
    """Whether a metric is the mean of its scores in every result."""
    for row, point in enumerate(points):
        if not known[row].any():
            return False
        mean = float(values[row][known[row]].mean())
        if not math.isclose(mean, point.value(leaf), rel_tol=1e-6, abs_tol=1e-9):
            return False
    return True
