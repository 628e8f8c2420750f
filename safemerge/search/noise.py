"""How far a trial's values may be from what endless prompts would show."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from safemerge.records import CandidateResult, TrialRecord

VARIANCES = "variances"
"""User attribute of Optuna's trials: variance of the values, by metric."""

_WIDTH = 2.0 * NormalDist().inv_cdf(0.975)
"""Width of a 95 % interval in standard deviations."""

_BROKEN_VARIANCE = 0.25
"""Variance of what a broken candidate is given for a value: it says nothing of its neighbours."""


def variances(record: TrialRecord) -> dict[str, float]:
    """Return the variance of a trial's values, by metric of its objectives and constraints.

    It is that of a normal distribution whose 95 % interval is as wide as the metric's own
    (Wilson's for shares), so that grouped prompts and aggregates count as what they are.

    Args:
        record: A finished trial.

    Returns:
        Variances in the metrics' squared units; empty for a trial without a result.
    """
    found: dict[str, float] = {}
    if record.result is None:
        return found
    for metric in [*record.objectives, *record.violations]:
        estimate = record.result.metrics.get(metric)
        if record.result.broken is not None:
            found[metric] = _BROKEN_VARIANCE
        elif estimate is not None and estimate.low is not None and estimate.high is not None:
            found[metric] = interval_variance(estimate.low, estimate.high)
    return found


def interval_variance(low: float, high: float) -> float:
    """Return the variance of the normal distribution whose 95 % interval is as wide."""
    return ((high - low) / _WIDTH) ** 2


class SharedNoise(NamedTuple):
    """Noise of one metric, where all candidates answer the same prompts."""

    shared: float
    """Variance of what moves all candidates alike: how hard the prompts happen to be."""
    own: dict[int, float]
    """Variance of the rest, by trial number."""


def shared_noise(
    records: Sequence[TrialRecord], metric: str, *, mean_of: Sequence[str] = ()
) -> SharedNoise | None:
    """Split the noise of a metric into what candidates share and what is a candidate's own.

    A score is taken as the sum of a prompt's effect, the same for all candidates, and a rest. The
    mean over candidates estimates a prompt's effect; the rest's variance over prompts, divided by
    their number, is a candidate's own variance, that of paired differences. Suites add up.

    Args:
        records: Trials with a result on the same prompts.
        metric: Full metric name, or an aggregate's.
        mean_of: What an aggregate is the mean of; empty for a plain metric.

    Returns:
        The variances; None if the metric is no mean of scores by prompt, its prompts are grouped,
        or a prompt lacks a verdict of some candidate.
    """
    parts = list(mean_of) or [metric]
    suites: dict[str, list[str]] = {}
    for part in parts:
        suite, _, name = part.partition(".")
        suites.setdefault(suite, []).append(name)
    shared, own, total = 0.0, np.zeros(len(records)), np.zeros(len(records))
    for suite, names in suites.items():
        rows = [_scores(record.result, suite, names) for record in records]
        if not all(rows) or any(row.keys() != rows[0].keys() for row in rows):
            return None
        scores = np.array([[row[key] for key in rows[0]] for row in rows]) / len(parts)
        count = scores.shape[1]
        effects = scores.mean(axis=0)
        total += scores.mean(axis=1)
        shared += float(effects.var()) / count
        own += (scores - effects).var(axis=1) / count
    values = [record.result.value(metric) for record in records if record.result is not None]
    if not np.allclose(total, values, rtol=0, atol=1e-6):
        return None
    numbers = [record.number for record in records]
    return SharedNoise(shared, dict(zip(numbers, own.tolist(), strict=True)))


def _scores(result: CandidateResult | None, suite: str, names: Sequence[str]) -> dict[str, float]:
    """The sum of some metrics by prompt; empty if one lacks a verdict or is grouped."""
    found = [] if result is None else result.scores.get(suite, [])
    if any(score.group is not None or not set(names) <= set(score.values) for score in found):
        return {}
    return {score.sample_id: sum(score.values[name] for name in names) for score in found}
