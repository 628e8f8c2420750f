"""A search's finished trials, with what the loop asks of them again and again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from safemerge.config.study import StudySpec
from safemerge.front import RunningFront
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.unseen import Drawn


class FinishedTrials:
    """Finished trials, counted and indexed as they come: no question goes through all of them.

    Args:
        spec: The study.
        records: Its finished trials, in the order they finished.
    """

    def __init__(self, spec: StudySpec, records: Iterable[TrialRecord] = ()) -> None:
        self.records: list[TrialRecord] = []
        """In the order they finished."""
        self.result_by_candidate: dict[str, CandidateResult] = {}
        self.rung_by_candidate: dict[str, RungResult] = {}
        self.complete: set[str] = set()
        """Candidates of COMPLETE trials."""
        self.failed_references: Counter[str] = Counter()
        """How often a candidate failed as a reference point."""
        self.exact_tries: Counter[int] = Counter()
        """Trials at the exact values of a trial, by its number."""
        self.num_scored = 0
        """Sampled trials that were scored and are feasible."""
        self.any_interpolated = False
        """Whether one has weights between two trained models."""
        self.drawn = Drawn()
        self.front = RunningFront(spec)
        for record in records:
            self.add(record)

    def add(self, record: TrialRecord) -> None:
        """Add a trial that has just finished.

        Raises:
            StudyError: If it is feasible and lacks an objective.
        """
        self.front.add(record)
        self.records.append(record)
        self.drawn.add(record)
        if record.result is not None:
            self.result_by_candidate.setdefault(record.candidate, record.result)
        if record.rung is not None:
            self.rung_by_candidate.setdefault(record.candidate, record.rung)
        if record.state == "COMPLETE":
            self.complete.add(record.candidate)
            self.num_scored += record.role == "sampled" and record.feasible
        elif record.state == "FAIL" and record.role == "reference":
            self.failed_references[record.candidate] += 1
        if record.exact_of is not None:
            self.exact_tries[record.exact_of] += 1
        self.any_interpolated |= record.interpolated
