"""How far a trial's values may be from what endless prompts would show."""

from __future__ import annotations

from statistics import NormalDist

from safemerge.records import TrialRecord

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
