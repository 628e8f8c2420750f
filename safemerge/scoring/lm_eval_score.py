"""Values of lm-evaluation-harness's documents as scores and estimates like all others.

A metric that is the mean of shares has the interval of our own shares (Wilson's). Any other (a
perplexity, a corpus score) is the task's own aggregate, with a jackknife's interval over groups of
documents: nothing is drawn, and the harness's standard errors are for large samples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from safemerge.config.suite import Direction
from safemerge.config.unit import harness_unit
from safemerge.data.lm_eval_task import LmEvalQuestions
from safemerge.data.suite import LoadedSuite
from safemerge.errors import ScoringError
from safemerge.inference import jackknife_interval
from safemerge.records import MetricEstimate, Score
from safemerge.scoring.estimate import estimate


def score_lm_eval(
    suite: LoadedSuite,
    questions: LmEvalQuestions,
    answers: Sequence[Any],
    *,
    metrics: Mapping[str, Direction],
) -> tuple[list[Score], list[MetricEstimate]]:
    """Score one suite's answers as its task does.

    Args:
        suite: What was asked.
        questions: The task's requests.
        answers: One per request.
        metrics: What is read, each with its better direction.

    Returns:
        One score per document, with the metrics that are means of shares (no scores if there is
        no such metric), and an estimate per metric. A value that is no number is unscored.

    Raises:
        ScoringError: If the task gives no value for a metric, or an aggregate is not finite.
    """
    values = questions.values(answers)
    names = [sample.sample_id for sample in suite.samples]
    missing = next((name for name in metrics for row in values if name not in row), None)
    if missing is not None or len(values) != len(names):
        raise ScoringError(
            f"suite '{suite.name}': the task must value {missing or 'every document'} for each of "
            f"{len(names)} documents; got {len(values)} valued. Name another metric."
        )
    shares = [
        name
        for name in metrics
        if questions.is_mean(name) and all(_is_share(row[name]) for row in values)
    ]
    scores = [
        _score(name, [float(row[metric]) for metric in shares], shares)
        for name, row in zip(names, values, strict=True)
        if shares
    ]
    estimates = []
    for metric, direction in metrics.items():
        full = f"{suite.name}.{metric}"
        if metric in shares:
            made = estimate(full, scores, key=metric, direction=direction, groups=suite.groups)
        else:
            made = _aggregated(
                full,
                [row[metric] for row in values],
                functools.partial(questions.aggregate, metric),
                [suite.groups.get(name, name) for name in names],
                direction,
            )
        estimates.append(made.model_copy(update={"unit": harness_unit(metric)}))
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


def _aggregated(
    metric: str,
    values: Sequence[Any],
    aggregate: Callable[[Sequence[Any]], float],
    groups: Sequence[str],
    direction: Direction,
) -> MetricEstimate:
    try:
        value, low, high = jackknife_interval(
            lambda places: aggregate([values[place] for place in places]),
            groups,
            is_share=harness_unit(metric.rpartition(".")[2]) == "share",
        )
    except ScoringError as error:
        raise ScoringError(
            f"{metric}: {error} The candidate's log-probabilities overflow."
        ) from error
    return MetricEstimate(
        metric=metric, value=value, low=low, high=high, n=len(values), direction=direction
    )
