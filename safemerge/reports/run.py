"""A run as the report sees it: what the store holds, with the derived parts worked out once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safemerge.config.study import StudySpec
from safemerge.errors import StudyError, UserError
from safemerge.front import (
    HypervolumeStep,
    front_trials,
    hypervolume_steps,
    reference_trials,
)
from safemerge.provenance import Provenance
from safemerge.records import CandidateResult, Front, PointBelief, TrialRecord
from safemerge.reports.attribution import Attribution, read_attributions
from safemerge.store import RunStore


@dataclass(frozen=True)
class Point:
    """A front or reference point; `report` is None until the front is published."""

    number: int
    label: str
    trial: TrialRecord
    search: CandidateResult
    report: CandidateResult | None
    belief: PointBelief | None = None
    """Of published points whose front a posterior chose."""

    @property
    def shown(self) -> CandidateResult:
        """The held-out result where there is one, else that of the search split."""
        return self.search if self.report is None else self.report

    @property
    def name(self) -> str:
        """``trial 17``, or the label of a reference point."""
        return self.label if self.trial.role == "reference" else f"trial {self.number}"


@dataclass(frozen=True)
class Run:
    """Everything a report is drawn from."""

    folder: Path
    """As the user named it: it appears in the commands that the report shows."""
    spec: StudySpec
    study_digest: str
    provenance: Provenance | None
    trials: tuple[TrialRecord, ...]
    """In the order they finished."""
    front: Front | None
    """The published front, if there is one."""
    attributions: tuple[Attribution, ...] = ()
    """What `safemerge attribute` found, by trial number."""

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The front: the published one, else that of the search split so far; by skill."""
        if self.front is not None:
            return self._published(self.front, "points")
        return tuple(_searched(trial) for trial in front_trials(self.spec, self.trials))

    @cached_property
    def references(self) -> tuple[Point, ...]:
        """Parents, the plain mean and warm starts, by trial number."""
        if self.front is not None:
            return self._published(self.front, "references")
        return tuple(_searched(trial) for trial in reference_trials(self.trials))

    @cached_property
    def knee(self) -> Point | None:
        """The published knee."""
        if self.front is None or self.front.knee is None:
            return None
        return next(item for item in self.points if item.number == self.front.knee)

    @cached_property
    def left_out(self) -> tuple[TrialRecord, ...]:
        """Trials chosen for the published front that it lacks, for want of a report result."""
        if self.front is None:
            return ()
        published = {point.number for point in self.front.points}
        if self.front.belief is not None:
            lacking = set(self.front.belief.members) - published
            return tuple(trial for trial in self.trials if trial.number in lacking)
        return tuple(
            trial
            for trial in front_trials(self.spec, self.trials)
            if trial.number not in published
        )

    @cached_property
    def counts(self) -> dict[str, int]:
        """Trials by outcome: ``feasible``, ``infeasible``, ``broken``, ``pruned``, ``failed``."""
        found = Counter(outcome(trial) for trial in self.trials)
        names = ("feasible", "infeasible", "broken", "pruned", "failed")
        return {key: found[key] for key in names}

    @cached_property
    def hypervolume_steps(self) -> list[HypervolumeStep]:
        """The hypervolume of the search split after each trial."""
        return hypervolume_steps(self.spec, self.trials)

    @property
    def num_sampled(self) -> int:
        """Finished recipes that the sampler proposed; one that was tried again counts once."""
        return sum(
            trial.role == "sampled" and trial.exact_of is None and not trial.is_tried_again
            for trial in self.trials
        )

    @property
    def is_complete(self) -> bool:
        """Whether a front is published, and a budget spent or every recipe tried."""
        if self.front is None:
            return False
        if self.front.ended_by is not None:
            return True
        return self.front.covered or self.num_sampled >= self.spec.num_trials

    def point(self, number: int) -> Point:
        """Return any trial as a point, with its report-split result if it has one.

        Args:
            number: Trial number.

        Returns:
            The point.

        Raises:
            UserError: If there is no such trial, or it failed and so has no result.
        """
        for item in (*self.points, *self.references):
            if item.number == number:
                return item
        for trial in self.trials:
            if trial.number != number:
                continue
            if trial.result is None:
                raise UserError(
                    f"{self.folder}: trial {number} has no result; got state {trial.state} "
                    f"({trial.reason or 'no reason given'}). Choose another trial."
                )
            return _searched(trial)
        raise UserError(f"{self.folder}: no such trial; got {number}. See the report's table.")

    def _published(self, front: Front, which: str) -> tuple[Point, ...]:
        by_number = {trial.number: trial for trial in self.trials}
        found = []
        for item in front.points if which == "points" else front.references:
            if item.number not in by_number:
                raise StudyError(
                    f"{self.folder}: front.json names trial {item.number}, which trials.jsonl "
                    "lacks. Restore the folder from a copy."
                )
            trial = by_number[item.number]
            found.append(
                Point(item.number, item.label, trial, item.search, item.report, item.belief)
            )
        return tuple(found)


def load_run(folder: str | Path) -> Run:
    """Read a run's folder; nothing in it is changed.

    Args:
        folder: E.g. ``results/demo``; the run may be unfinished.

    Returns:
        The run.

    Raises:
        UserError: If the folder holds no run.
        StudyError: If a file in it is damaged.
    """
    store = RunStore(folder)
    if not store.exists:
        found = "an empty or foreign folder" if store.folder.is_dir() else "no such folder"
        raise UserError(
            f"{store.folder}: must hold a run (study.json); got {found}. "
            "Give the folder that 'safemerge search' wrote, e.g. results/demo."
        )
    document = store.study()
    return Run(
        folder=store.folder,
        spec=document.config,
        study_digest=document.digest,
        provenance=document.provenance,
        trials=tuple(store.trials()),
        front=store.read_front(),
        attributions=tuple(read_attributions(store)),
    )


def outcome(trial: TrialRecord) -> str:
    """Say how a trial ended, in a word: feasible, infeasible, broken, pruned or failed."""
    if trial.state != "COMPLETE":
        return "failed" if trial.state == "FAIL" else "pruned"
    if trial.result is not None and trial.result.broken is not None:
        return "broken"
    return "feasible" if trial.feasible else "infeasible"


def is_measured(trial: TrialRecord) -> bool:
    """Whether a trial's objectives are measured, not stand-ins for a broken candidate."""
    return trial.result is not None and outcome(trial) in ("feasible", "infeasible")


def _searched(trial: TrialRecord) -> Point:
    if trial.result is None:
        raise StudyError(f"trial {trial.number}: state COMPLETE needs a result; got none.")
    return Point(trial.number, trial.label, trial, trial.result, None)
