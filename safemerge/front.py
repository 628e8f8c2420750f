"""The front: which trials may be on it, which are, and how it is published; no files.

The one place that says what is feasible, non-dominated, the knee, and how large the volume is:
search, report, export and page read it here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from safemerge.config.metric import Direction
from safemerge.config.study import Constraint, StudySpec
from safemerge.errors import StudyError
from safemerge.pareto import hypervolume, knee_index, non_dominated_mask
from safemerge.records import (
    CandidateResult,
    Front,
    FrontBelief,
    FrontPoint,
    PointBelief,
    Split,
    TrialRecord,
)


class BelievedFront(NamedTuple):
    """A front that a posterior chose."""

    front: FrontBelief
    points: Mapping[int, PointBelief]
    """What is believed of each published trial, by number."""


class HypervolumeStep(NamedTuple):
    """The hypervolume of the search split once a trial has finished."""

    finished: int
    """Trials finished so far, those without a value included, from 1."""
    number: int
    """The trial that finished."""
    value: float


def front_trials(spec: StudySpec, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Choose the non-dominated trials among the feasible COMPLETE ones, on the search split.

    Reference points take part: a parent that nothing dominates is on the front. Trials with
    interpolated weights do not: they are estimates. Of several
    trials of one candidate only the first counts, a reference before sampled ones.

    Args:
        spec: The study, for objectives and directions.
        trials: Finished trials, in any order.

    Returns:
        The trials, by number; empty if nothing is feasible. These, and `reference_trials`,
        are what has to be evaluated on the report split.

    Raises:
        StudyError: If a feasible trial lacks an objective.
    """
    return non_dominated(spec, filter(_is_eligible, trials))


class RunningFront:
    """`front_trials` of a running search: a new trial is compared with the front alone.

    Args:
        spec: The study, for objectives and directions.
    """

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        self._signs = np.array([1.0 if way == "maximize" else -1.0 for way in _directions(spec)])
        self._eligible: dict[str, TrialRecord] = {}
        self._front: list[TrialRecord] = []
        self._rows = np.empty((0, len(self._signs)))
        self._hypervolume: float | None = 0.0

    def add(self, trial: TrialRecord) -> None:
        """Add a finished trial.

        Raises:
            StudyError: If it is feasible and lacks an objective.
        """
        if not _is_eligible(trial):
            return
        known = self._eligible.get(trial.candidate)
        if known is not None and _precedence(known) < _precedence(trial):
            return
        self._eligible[trial.candidate] = trial
        if known is None:
            self._insert(trial)
            return
        self._front, self._rows = [], np.empty((0, len(self._signs)))
        for item in self._eligible.values():
            self._insert(item)

    def trials(self) -> list[TrialRecord]:
        """Return the front, by number."""
        return sorted(self._front, key=lambda trial: trial.number)

    def hypervolume(self) -> float:
        """Return the front's exact hypervolume; it is computed once for each front."""
        if self._hypervolume is None:
            self._hypervolume = _hypervolume(self._spec, (self._rows * self._signs).tolist())
        return self._hypervolume

    def _insert(self, trial: TrialRecord) -> None:
        row = self._signs * _objective_row(self._spec, trial)
        if np.any(np.isnan(row)):
            raise StudyError(f"trial {trial.number}: objectives must not be NaN; got {row}.")
        no_worse = np.all(self._rows >= row, axis=1)
        if np.any(no_worse & np.any(self._rows > row, axis=1)):
            return
        kept = ~np.all(self._rows <= row, axis=1) | no_worse
        self._front = [item for item, stays in zip(self._front, kept, strict=True) if stays]
        self._front.append(trial)
        self._rows = np.concatenate([self._rows[kept], row[None]])
        self._hypervolume = None


def non_dominated(spec: StudySpec, trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that no other one dominates, each candidate once, by number.

    Args:
        spec: The study, for objectives and directions.
        trials: Trials with every objective, in any order.

    Raises:
        StudyError: If a trial lacks an objective.
    """
    found = _once(trials)
    mask = non_dominated_mask([_objective_row(spec, trial) for trial in found], _directions(spec))
    kept = [trial for trial, is_kept in zip(found, mask, strict=True) if is_kept]
    return sorted(kept, key=lambda trial: trial.number)


def eligible_trials(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the feasible trials with exact weights, each candidate once, by number."""
    return sorted(_once(filter(_is_eligible, trials)), key=lambda trial: trial.number)


def front_hypervolume(spec: StudySpec, trials: Sequence[TrialRecord]) -> float:
    """Return the exact hypervolume of the trials that may be on the front, on the search split."""
    rows = [_objective_row(spec, trial) for trial in trials if _is_eligible(trial)]
    return _hypervolume(spec, rows)


def reference_trials(trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Choose the reference points with a result, feasible or not: parents, mean, warm starts.

    Args:
        trials: Finished trials, in any order.

    Returns:
        One trial a label (the last COMPLETE one, if it was tried again), by number.
    """
    by_label = {
        trial.label: trial
        for trial in sorted(trials, key=lambda trial: trial.number)
        if trial.role == "reference" and trial.state == "COMPLETE" and trial.result is not None
    }
    return sorted(by_label.values(), key=lambda trial: trial.number)


def assemble_front(
    spec: StudySpec,
    trials: Sequence[TrialRecord],
    report_results: Mapping[str, CandidateResult],
    *,
    study_digest: str,
    belief: BelievedFront | None = None,
) -> Front:
    """Put the published front together.

    Membership is decided on the search split alone. With a belief the knee is the one of the
    members' posterior means, without one that of the report split; in either case only points that
    keep every constraint on the report split count. So the report split chooses nothing with a
    belief, and nothing but the knee without. A member without a report result is left out of
    `Front.points`, not out of the search hypervolume; the report names such trials.

    Args:
        spec: The study.
        trials: Finished trials, in any order.
        report_results: Report-split result by candidate digest, for front and reference
            trials; others are ignored.
        study_digest: Digest of the study, as the store has it.
        belief: What chose the points; None for the observed front.

    Returns:
        The front; `hypervolume_report` is of the members alone where a belief publishes more
        points; `knee` is None if no point has every objective and constraint on the
        report split.

    Raises:
        StudyError: If a result is of another split or another candidate.
    """
    for key, result in report_results.items():
        if result.split != "report" or result.candidate != key:
            raise StudyError(
                f"front of '{spec.name}', candidate {key}: needs its report-split result; "
                f"got split '{result.split}' of candidate {result.candidate}."
            )
    observed = front_trials(spec, trials)
    chosen = observed
    if belief is not None:
        chosen = [item for item in eligible_trials(trials) if item.number in belief.points]
    points = [_point(trial, report_results, belief) for trial in chosen]
    references = [_point(trial, report_results) for trial in reference_trials(trials)]
    front = Front(
        study=spec.name,
        study_digest=study_digest,
        objectives=objective_documents(spec),
        points=[point for point in points if point is not None],
        references=[point for point in references if point is not None],
        hypervolume_search=front_hypervolume(spec, observed),
        belief=None if belief is None else belief.front,
    )
    counted = [
        point for point in front.points if belief is None or point.number in belief.front.members
    ]
    valued = [row for point in counted if (row := sound_row(spec, point.report)) is not None]
    return front.model_copy(
        update={
            "knee": knee_number(spec, counted, split="report"),
            "hypervolume_report": _hypervolume(spec, valued),
        }
    )


def knee_number(spec: StudySpec, points: Sequence[FrontPoint], *, split: Split) -> int | None:
    """Return the trial number of the knee among points.

    Args:
        spec: The study.
        points: Points of the front; those with a belief count by its means.
        split: Whose values to use of the others. Points that break a constraint there, or lack a
            value, cannot be the knee.

    Returns:
        The trial number, or None if no point qualifies.
    """
    rows: list[list[float]] = []
    numbers: list[int] = []
    for point in points:
        row = sound_row(spec, point.search if split == "search" else point.report)
        if row is not None and point.belief is not None:
            row = [point.belief.values[item.metric].mean for item in spec.objectives]
        if row is not None:
            rows.append(row)
            numbers.append(point.number)
    if not rows:
        return None
    return numbers[knee_index(rows, _directions(spec))]


def hypervolume_steps(spec: StudySpec, trials: Sequence[TrialRecord]) -> list[HypervolumeStep]:
    """Follow the hypervolume of the feasible trials over the search.

    Args:
        spec: The study; its objectives carry the reference values.
        trials: Finished trials, in the order they finished.

    Returns:
        One step a trial; a failed, pruned or infeasible trial leaves the value as it was.
    """
    steps: list[HypervolumeStep] = []
    front = RunningFront(spec)
    for count, trial in enumerate(trials, start=1):
        front.add(trial)
        steps.append(HypervolumeStep(count, trial.number, front.hypervolume()))
    return steps


def broken_constraints(spec: StudySpec, result: CandidateResult) -> list[Constraint]:
    """List the constraints that a result breaks, or has no value for.

    Args:
        spec: The study.
        result: A candidate on either split.

    Returns:
        The constraints, in the study's order; empty if all hold.
    """
    # NOTE: NaN, for no value, is not within.
    return [item for item in spec.constraints if not violation(item, result) <= 0]


def violation(constraint: Constraint, result: CandidateResult) -> float:
    """Return by how much a result breaks a constraint: 0 or less where it holds, NaN unmeasured.

    Args:
        constraint: The constraint.
        result: A candidate on either split.
    """
    excess = result.value(constraint.metric) - constraint.budget
    return excess if constraint.direction == "minimize" else -excess


def sound_row(spec: StudySpec, result: CandidateResult) -> list[float] | None:
    """Return a result's objective values if it is sound, keeps every constraint and has all.

    Args:
        spec: The study.
        result: A candidate on either split.

    Returns:
        Values in the order of the objectives, or None.
    """
    row = [result.value(objective.metric) for objective in spec.objectives]
    if result.broken is not None or not all(map(math.isfinite, row)):
        return None
    return None if broken_constraints(spec, result) else row


def objective_documents(spec: StudySpec) -> list[dict[str, Any]]:
    """Return `Front.objectives`: metric, direction, reference, and an aggregate's parts."""
    documents = []
    for objective in spec.objectives:
        document: dict[str, Any] = objective.resolved()
        if objective.metric in spec.aggregates:
            document["mean_of"] = list(spec.aggregates[objective.metric].mean_of)
        documents.append(document)
    return documents


def _point(
    trial: TrialRecord,
    report_results: Mapping[str, CandidateResult],
    belief: BelievedFront | None = None,
) -> FrontPoint | None:
    report = report_results.get(trial.candidate)
    if report is None or trial.result is None:
        return None
    return FrontPoint(
        number=trial.number,
        label=trial.label,
        candidate=trial.candidate,
        role=trial.role,
        search=trial.result,
        report=report,
        recipe=trial.recipe,
        belief=None if belief is None else belief.points[trial.number],
    )


def _once(trials: Iterable[TrialRecord]) -> list[TrialRecord]:
    first: dict[str, TrialRecord] = {}
    for trial in sorted(trials, key=_precedence):
        first.setdefault(trial.candidate, trial)
    return list(first.values())


def _precedence(trial: TrialRecord) -> tuple[bool, int]:
    """Which of several trials of one candidate counts: the lowest."""
    return trial.role != "reference", trial.number


def _is_eligible(trial: TrialRecord) -> bool:
    sound = trial.state == "COMPLETE" and trial.feasible and trial.result is not None
    return sound and not trial.interpolated


def _objective_row(spec: StudySpec, trial: TrialRecord) -> list[float]:
    missing = [item.metric for item in spec.objectives if item.metric not in trial.objectives]
    if missing:
        raise StudyError(
            f"trial {trial.number}: a feasible trial needs every objective; "
            f"got none for {missing[0]!r}. Was trials.jsonl edited by hand?"
        )
    return [trial.objectives[objective.metric] for objective in spec.objectives]


def _hypervolume(spec: StudySpec, rows: Sequence[Sequence[float]]) -> float:
    return hypervolume(rows, [item.reference for item in spec.objectives], _directions(spec))


def _directions(spec: StudySpec) -> list[Direction]:
    return [objective.direction for objective in spec.objectives]
