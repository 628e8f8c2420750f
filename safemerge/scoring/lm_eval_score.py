"""Values of lm-evaluation-harness's documents as scores and estimates like all others.

A metric that is the mean of shares has the interval of our own shares (Wilson's). Any other (a
perplexity, a corpus score) is the task's own aggregate, with a jackknife's interval over groups of
documents: nothing is drawn, and the harness's standard errors are for large samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from safemerge.config.metric import Metric
from safemerge.data.lm_eval_task import LmEvalQuestions
from safemerge.data.suite import LoadedSuite
from safemerge.errors import ScoringError
from safemerge.records import MetricEstimate, Score
from safemerge.scoring.estimate import aggregate_estimate, estimate


def score_lm_eval(
    suite: LoadedSuite,
    questions: LmEvalQuestions,
    answers: Sequence[Any],
    *,
    metrics: Sequence[Metric],
) -> tuple[list[Score], list[MetricEstimate]]:
    """Score one suite's answers as its task does.

    Args:
        suite: What was asked.
        questions: The task's requests.
        answers: One per request.
        metrics: What is read.

    Returns:
        One score per document, with the metrics that are means of shares (no scores if there is
        no such metric), and an estimate per metric. A value that is no number is unscored.

    Raises:
        ScoringError: If the task gives no value for a metric, or an aggregate is not finite.
    """
    values = questions.values(answers)
    names = [sample.sample_id for sample in suite.samples]
    missing = next((row.name for row in metrics if any(row.name not in it for it in values)), None)
    if missing is not None or len(values) != len(names):
        raise ScoringError(
            f"suite '{suite.name}': the task must value {missing or 'every document'} for each of "
            f"{len(names)} documents; got {len(values)} valued. Name another metric."
        )
    shares = [
        row.name
        for row in metrics
        if questions.is_mean(row.name) and all(_is_share(value[row.name]) for value in values)
    ]
    scores = [
        _score(name, [float(row[metric]) for metric in shares], shares)
        for name, row in zip(names, values, strict=True)
        if shares
    ]
    estimates = []
    for row in metrics:
        metric, direction = row.name, row.direction
        full = f"{suite.name}.{metric}"
        if metric in shares:
            made = estimate(full, scores, key=metric, direction=direction, groups=suite.groups)
        else:
            made = aggregate_estimate(
                full,
                [value[metric] for value in values],
                functools.partial(questions.aggregate, metric),
                row,
                [suite.groups.get(name, name) for name in names],
            )
        estimates.append(made.model_copy(update={"unit": row.unit}))
    return scores, estimates


def _is_share(value: Any) -> bool:
    """Numbers in [0, 1], and those that are none: they are left unscored."""
    if not isinstance(value, bool | int | float | np.number):
        return False
    number = float(value)
    return math.isnan(number) or 0.0 <= number <= 1.0


def _score(name: str, values: Sequence[float], shares: Sequence[str]) -> Score:
    if any(map(math.isnan, values)):
        return Score(sample_id=name, unscored="the task's value is not a number")
    return Score(sample_id=name, values=dict(zip(shares, values, strict=True)))
