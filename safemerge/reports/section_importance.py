"""Which parameters go with which objective, by rank correlation over the sampled trials."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from safemerge.config.metric import metrics_of
from safemerge.records import TrialRecord
from safemerge.reports.markup import Cell, no_number, number_cell, table
from safemerge.reports.run import Run, is_measured
from safemerge.reports.wording import MINUS

MIN_TRIALS = 8
"""Fewest trials that a correlation is reported for."""


def importance_table(run: Run) -> Markup:
    """Return Spearman's rank correlation of each numeric parameter with each objective.

    Ties get their mean rank. The interval is Fisher's with the variance of Bonett and Wright
    (2000), ``(1 + rho^2 / 2) / (n - 3)``; of each correlation alone.

    Args:
        run: The run.

    Returns:
        The table, the strongest parameter first; empty with too few trials.
    """
    trials = [item for item in run.trials if item.role == "sampled" and is_measured(item)]
    names = sorted({name for trial in trials for name in trial.params})
    metrics = metrics_of(run.spec)
    objectives = [metrics[item.metric] for item in run.spec.objectives]
    rows = []
    for name in names:
        found = [_correlation(trials, name, metric.name) for metric in objectives]
        if any(item is not None for item in found):
            strength = max(abs(item[0]) for item in found if item is not None)
            rows.append((strength, name, found))
    if not rows:
        return Markup()
    rows.sort(key=lambda row: (-row[0], row[1]))
    caption = (
        "Rank correlation (Spearman) of each numeric parameter with each objective, over sampled "
        "trials on the search split, with 95 % interval and n; the strongest first. The share of "
        "what the ranks explain is its square, if the effect is monotone and alone."
    )
    return table(
        caption,
        ["parameter", *(metric.name for metric in objectives)],
        [[Cell(name.removeprefix("method.")), *map(_cell, found)] for _, name, found in rows],
    )


def spearman(left: Sequence[float], right: Sequence[float]) -> float:
    """Return Spearman's rank correlation; NaN where either is constant.

    Args:
        left: Values, at least two.
        right: As many.
    """
    ranks = [_mean_ranks(np.asarray(side, dtype=float)) for side in (left, right)]
    centred = [item - item.mean() for item in ranks]
    norm = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else math.nan


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def _correlation(
    trials: Sequence[TrialRecord], name: str, metric: str
) -> tuple[float, float, float, int] | None:
    pairs = [
        (float(trial.params[name]), trial.objectives[metric])
        for trial in trials
        if not isinstance(trial.params.get(name, ""), str | bool) and metric in trial.objectives
    ]
    if len(pairs) < MIN_TRIALS:
        return None
    rho = spearman([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    if not math.isfinite(rho):
        return None
    if abs(rho) > 1 - 1e-12:
        return rho, rho, rho, len(pairs)
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (len(pairs) - 3))
    return rho, math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half), len(pairs)


def _cell(found: tuple[float, float, float, int] | None) -> Cell:
    if found is None:
        return no_number("too few trials, or constant")
    rho, low, high, n = found
    center, least, most = (f"{value:+.2f}".replace("-", MINUS) for value in (rho, low, high))
    return number_cell(rho, f"{center} [{least}, {most}], n = {n}")
