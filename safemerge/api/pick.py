"""Choosing a point of a run's front."""

from __future__ import annotations

import math

from safemerge.config.metric import measured_metrics
from safemerge.config.study import StudySpec
from safemerge.errors import UserError
from safemerge.front import broken_constraints
from safemerge.records import CandidateResult, Front, FrontPoint
from safemerge.reports.run import Run


def published_front(run: Run) -> Front:
    """Return the published front of a stored run.

    Raises:
        UserError: If there is none yet.
    """
    if run.front is None:
        raise UserError(
            f"{run.folder}: holds no published front; got an unfinished run. Finish it with "
            "`safemerge search STUDY.yaml --resume`."
        )
    return run.front


def defects(spec: StudySpec, result: CandidateResult) -> list[str]:
    """Say what forbids to pick a result by a rule: a broken model, a limit that it breaks."""
    found = [] if result.broken is None else [f"the candidate is broken: {result.broken}"]
    for item in broken_constraints(spec, result):
        limit = "at most" if item.direction == "minimize" else "at least"
        value = result.value(item.metric)
        got = "has no value" if math.isnan(value) else f"is {value:.3f}"
        found.append(f"{item.metric} {got}, limit {limit} {item.budget:g}")
    return found


def pick_point(front: Front, choice: str, *, spec: StudySpec, where: str) -> FrontPoint:
    """Return the front point that a choice names, judged on the report split.

    Only a trial number may name a point that breaks a limit there.

    Args:
        front: The published front.
        choice: ``knee``, ``safest`` (best by the first objective about harm), ``best:METRIC`` or
            a number.
        spec: The study, for its limits.
        where: Place for messages.

    Raises:
        UserError: If the choice names nothing.
    """
    if not front.points:
        raise UserError(f"{where}: the front is empty; no feasible candidate was found.")
    if choice == "knee":
        for point in front.points:
            if point.number == front.knee:
                return point
        raise UserError(
            f"{where}: the front has no knee: no point keeps every limit on the report split. "
            "Pick a trial number to export one all the same."
        )
    if choice.isascii() and choice.isdigit():
        for point in [*front.points, *front.references]:
            if point.number == int(choice):
                return point
        numbers = ", ".join(str(point.number) for point in front.points)
        raise UserError(f"{where}: pick: trial {choice} is not on the front. On it: {numbers}.")
    metric = choice.removeprefix("best:")
    if choice == "safest":
        metric = _harm_objective(spec, where)
    known = sorted({name for point in front.points for name in point.report.metrics})
    if metric not in known:
        raise UserError(
            f"{where}: pick must be knee, safest, best:METRIC or a trial number; got "
            f"{choice!r}. Metrics: {', '.join(known)}."
        )
    sound = [point for point in front.points if not defects(spec, point.report)]
    if not sound:
        first = front.points[0]
        raise UserError(
            f"{where}: pick {choice}: no point of the front keeps every limit on the report "
            f"split; trial {first.number}: {defects(spec, first.report)[0]}. Pick a trial number "
            "to export one all the same."
        )
    measured = [point for point in sound if not math.isnan(point.report.value(metric))]
    if not measured:
        raise UserError(f"{where}: pick: no point of the front has a value of {metric}.")
    maximize = measured[0].report.metrics[metric].direction == "maximize"
    sign = -1.0 if maximize else 1.0
    return min(measured, key=lambda point: sign * point.report.value(metric))


def _harm_objective(spec: StudySpec, where: str) -> str:
    """Return the first objective about harm, whatever it is called."""
    rows = measured_metrics(spec.suites, spec.aggregates)
    objectives = [rows[item.metric] for item in spec.objectives]
    for row in objectives:
        if row.role == "harm":
            return row.name
    found = ", ".join(f"{row.name} ({row.role or 'several roles'})" for row in objectives)
    raise UserError(
        f"{where}: pick safest: the study must have an objective about harm; got {found}. Use "
        "best:METRIC; an aggregate of several roles is about harm if it says role: harm."
    )
