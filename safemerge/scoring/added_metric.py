"""Metrics of other packages: from scored answers to estimates like all others."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from numbers import Real

from safemerge.config.added_metric import AddedMetric
from safemerge.errors import ScoringError
from safemerge.records import Answer, MetricEstimate, Score
from safemerge.scoring.estimate import aggregate_estimate, estimate


def added_estimates(
    suite: str,
    metrics: Sequence[AddedMetric],
    answers: Sequence[Answer],
    *,
    groups: Mapping[str, Hashable] | None = None,
) -> tuple[list[Score], list[MetricEstimate]]:
    """Compute the metrics that packages add to a suite.

    Args:
        suite: Name of the suite.
        metrics: What is computed.
        answers: Every answer of one split, unscored ones too; the metrics see the scored ones.
        groups: Group by sample id, of samples that share a prompt.

    Returns:
        The scores in order, with the values of metrics that have one for each answer, and an
        estimate of each metric.

    Raises:
        ScoringError: If a metric fails, gives values of another number than the answers', or a
            value that is not finite, or outside [0, 1] for a share. Its error's text may repeat
            an answer, so only the error's kind is in the message.
    """
    scored = [answer for answer in answers if answer.score.unscored is None]
    scores = {answer.score.sample_id: answer.score for answer in answers}
    estimates = []
    for made in metrics:
        found = _computed(suite, made, scored) if scored else []
        if isinstance(found, list):
            for answer, value in zip(scored, found, strict=True):
                if value is not None:
                    name = answer.score.sample_id
                    values = {**scores[name].values, made.row.name: value}
                    scores[name] = scores[name].model_copy(update={"values": values})
        estimates.append(_estimate(suite, made, scored, found, list(scores.values()), groups))
    return list(scores.values()), estimates


def _estimate(
    suite: str,
    made: AddedMetric,
    scored: Sequence[Answer],
    found: list[float | None] | float,
    scores: Sequence[Score],
    groups: Mapping[str, Hashable] | None,
) -> MetricEstimate:
    row, full = made.row, f"{suite}.{made.row.name}"
    each = isinstance(found, list)
    kept = [
        answer
        for place, answer in enumerate(scored)
        if not isinstance(found, list) or found[place] is not None
    ]
    if not kept or (each and row.unit == "share"):
        text = estimate(full, scores, key=row.name, direction=row.direction, groups=groups)
    else:
        text = aggregate_estimate(
            full,
            kept,
            lambda some: _total(_computed(suite, made, some)),
            row,
            [str((groups or {}).get(one.score.sample_id, one.score.sample_id)) for one in kept],
        )
    return text.model_copy(update={"unit": row.unit, "unscored": len(scores) - len(kept)})


def _computed(
    suite: str, made: AddedMetric, answers: Sequence[Answer]
) -> list[float | None] | float:
    """Call a metric, and check what it gives."""
    where = f"suite '{suite}', metric '{made.row.name}'"
    try:
        given = made(tuple(answers))
    except Exception as error:  # noqa: BLE001 - whatever somebody else's function raises
        raise ScoringError(f"{where}: failed; got {type(error).__name__}.") from None
    each = not isinstance(given, Real)
    found = list(given) if isinstance(given, Sequence) else [given]
    if each and len(found) != len(answers):
        raise ScoringError(
            f"{where}: must give one number, or a value for each of {len(answers)} answers; got "
            f"{len(found)} values."
        )
    values = [None if value is None and each else _checked(value, made, where) for value in found]
    if each:
        return values
    (total,) = values
    assert total is not None, "checked"
    return total


def _checked(value: object, made: AddedMetric, where: str) -> float:
    number = float(value) if isinstance(value, Real) else math.nan
    limits = made.row.range
    if not math.isfinite(number) or (limits and not limits[0] <= number <= limits[1]):
        raise ScoringError(
            f"{where}: a {made.row.unit} must be {'in [0, 1]' if limits else 'a finite number'}; "
            f"got {number if isinstance(value, Real) else type(value).__name__}."
        )
    return number


def _total(found: list[float | None] | float) -> float:
    """The metric of some answers: its one number, or the mean of its values."""
    if not isinstance(found, list):
        return found
    values = [value for value in found if value is not None]
    return math.fsum(values) / len(values)
