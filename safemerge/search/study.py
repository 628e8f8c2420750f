"""A search in its folder: ask for candidates, tell their results, resume."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Self

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.study import StudySpec
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.agreement import open_agreeing_study
from safemerge.search.dashboard import Dashboard
from safemerge.search.flight import FlightFile
from safemerge.search.records import Failure, Proposal, Pruned
from safemerge.search.recovery import NUMBER, Recovery
from safemerge.search.retrain import Place
from safemerge.search.sampling import Sampling, mark_retried
from safemerge.search.state import SearchState
from safemerge.search.storage import (
    close_study,
    make_sampler,
    storage_errors,
    storage_path,
    with_sampler,
)
from safemerge.store import RunStore


class SearchStudy:
    """One study, driven by a single process; any number of trials may be in flight.

    The references (each parent, the plain mean, warm starts that no space can express) come
    first. They live in the run's store, and where a space expresses one, the sampler gets it
    as a finished trial that costs no budget. Then come the points that are sampled for warm
    starts. Sampled trials live in Optuna as well, in memory
    unless the study says otherwise, and are rebuilt there: ``trials.jsonl`` is the truth. Every
    trial ends COMPLETE, PRUNED or FAIL with a reason. A crashed candidate is proposed again up to
    ``evaluator.num_retries`` times, each try under its own number. Methods may be called from
    several threads.

    Opening it again resumes: trials that were in flight are recorded as FAIL, *interrupted*,
    and their parameters proposed again before anything new; a trial that finished in one of
    the two stores only is finished in the other.

    Args:
        spec: The study, with checkpoints resolved as far as they will be.
        store: The run's folder, created for the same study.
        place: Says where an expert with settings of its own is or will be; needed where a
            study interpolates between trained values.

    Raises:
        StudyError: If the folder belongs to another study, is damaged, or is in use.
    """

    def __init__(self, spec: StudySpec, store: RunStore, *, place: Place | None = None) -> None:
        store.check_same_study(spec)
        spec = with_sampler(spec, store.study().config).spec
        self.store = store
        self._lock = threading.RLock()
        self._held = ExitStack()
        self._path = storage_path(spec, store.folder)
        with ExitStack() as undo:
            undo.enter_context(store.locked())
            self._state = SearchState(spec, store.trials(), place=place)
            records = self._state.records
            self._study, self.rebuilt = open_agreeing_study(spec, store.folder, records)
            """Why Optuna's storage was begun anew, in one line; None if it agreed."""
            undo.callback(close_study, self._study)
            flight = FlightFile(store.folder)
            with storage_errors(self._path):
                recovery = Recovery(spec, self._study, records, flying=flight.read())
                for record in recovery.run():
                    store.append(record)
                    self._state.add(record)
                flight.clear()
                self._flight = flight
                self._dashboard: Dashboard | None = None
                if spec.storage == "memory":
                    self._dashboard = Dashboard(spec, self._path, self._study)
                    undo.callback(self._dashboard.close)
                rounds = spec.sampler.startup if spec.sampler.synchronous else None
                self._sampling = Sampling(self._study, round_size=rounds)
                undo.callback(self._sampling.tell_withheld)  # before the dashboard's last copy
                self._sampling.tell_references(spec, records)
                self._sampling.queue_starts(spec)
                trials = self._study.get_trials(deepcopy=False)
            self.interrupted: tuple[int, ...] = recovery.interrupted
            """Numbers of the trials that a killed driver had in flight."""
            self._study.sampler = make_sampler(spec, num_existing=len(trials))
            known = [trial.user_attrs[NUMBER] for trial in trials if NUMBER in trial.user_attrs]
            numbers = (*known, *(record.number for record in records))
            self._state.next_number = 1 + max(numbers, default=-1)
            self._held = undo.pop_all()

    @property
    def spec(self) -> StudySpec:
        """The study, with the models that were trained meanwhile."""
        return self._state.spec

    def ask(self, *, sample: bool = True) -> Proposal | None:
        """Propose the next candidate.

        References come first, then tries again, then new samples; at last what would be on the
        front with interpolated weights, at its exact values.

        Args:
            sample: Whether to sample if no reference is left.

        Returns:
            The proposal, or None if there is nothing to propose now: the budget is spent.
            While trials are in flight, a later call may still propose one of them again;
            `done` tells.

        Raises:
            StudyError: If Optuna's storage cannot be used.
            ConfigError: If the drawn values make an illegal recipe.
        """
        with self._lock, storage_errors(self._path):
            state = self._state
            pending = state.next_reference()
            if pending is None and sample and self._may_sample():
                if state.ended_by is None or self._sampling.waiting:
                    pending = self._sampling.ask(state.spec, state.next_number, state.drawn)
                pending = pending or state.next_exact()
            if pending is not None and pending.trial is not None:
                self._flight.add(pending.flying())
            return None if pending is None else state.start(pending)

    def wanted(self, number: int) -> list[str]:
        """Return the folders of models that a proposal in flight waits for."""
        with self._lock:
            return self._state.wanted(number)

    def proposal(self, number: int) -> Proposal:
        """Return a proposal in flight as it is now: models that came meanwhile are in it."""
        with self._lock:
            return self._state.in_flight(number).proposal

    def add_trained(self, made: CheckpointRef) -> None:
        """Add a model that is trained now; see `SearchState.add_trained`."""
        with self._lock:
            self._state.add_trained(made)

    def promote(self, number: int, found: RungResult) -> Pruned | Failure | None:
        """Decide whether a trial is promoted to be scored; see `SearchState.promote`."""
        with self._lock:
            return self._state.promote(number, found)

    def tell(self, number: int, outcome: CandidateResult | Failure | Pruned) -> TrialRecord:
        """Finish a trial: first in the store, then in Optuna.

        Args:
            number: Number of the proposal.
            outcome: Its result on the search split, or why there is none.

        Returns:
            The record, as stored.

        Raises:
            StudyError: If the trial is not in flight, or the result is of another split.
            PreflightError: If the disk is full; the trial stays in flight and can be
                reported again.
        """
        with self._lock:
            state = self._state
            ending = state.ending(number, outcome)
            record, trial = ending.record, ending.pending.trial
            with storage_errors(self._path):
                if trial is not None and ending.retried:
                    # Before the record, so that a driver killed in between tries again.
                    mark_retried(trial)
                self.store.append(record)
                state.finish(ending)
                if record.role == "reference":
                    self._tell_reference(record)
                if trial is not None:
                    values = state.values(record) if record.state == "COMPLETE" else ()
                    self._sampling.tell(trial, record, values)
                    if ending.retried:
                        self._sampling.queue_again(state.spec, ending.pending.proposal)
                self._flight.remove(number)
                if self._dashboard is not None:
                    self._dashboard.note_change()
            return record

    def _may_sample(self) -> bool:
        """Whether a recipe may be drawn now; in rounds, what it must know may be in flight."""
        if not self.spec.sampler.synchronous:
            return True
        return not (self._state.references_in_flight or self._sampling.awaits_round)

    def _tell_reference(self, record: TrialRecord) -> None:
        """Let the sampler know of a reference point; in rounds, in the order of their numbers."""
        records = [record]
        if self.spec.sampler.synchronous:
            if self._state.references_in_flight:
                return
            records = sorted(self._state.records, key=lambda item: item.number)
        self._sampling.tell_references(self.spec, records)

    def known_result(self, candidate: str) -> CandidateResult | None:
        """Return the result of a candidate that was evaluated already, if it was."""
        with self._lock:
            return self._state.known_result(candidate)

    def known_rung(self, candidate: str) -> RungResult | None:
        """Return a candidate's losses on the low rung, if it was there already."""
        with self._lock:
            return self._state.known_rung(candidate)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Every finished trial, in the order they finished."""
        with self._lock:
            return tuple(self._state.records)

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Numbers of the trials that were asked for and not finished."""
        with self._lock:
            return tuple(sorted(self._state.pending))

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and nothing is left to propose."""
        with self._lock, storage_errors(self._path):
            return self._state.is_done(
                num_sampled=self._sampling.num_counted, waiting=self._sampling.waiting
            )

    @property
    def covered(self) -> bool:
        """Whether every recipe that the spaces can express was sampled: the search ends there."""
        with self._lock:
            return self._state.covered

    @property
    def ended_by(self) -> str | None:
        """Which of the study's `budget` is spent, in words; None if none is."""
        with self._lock:
            return self._state.ended_by

    @property
    def num_sampled(self) -> int:
        """Recipes sampled so far, those in flight included; tries again count once."""
        with self._lock, storage_errors(self._path):
            return self._sampling.num_counted

    @property
    def startup_finished(self) -> bool:
        """Whether none of the recipes is open that are sampled before the sampler learns.

        One that crashed or was interrupted is open until its last try is finished.
        """
        with self._lock, storage_errors(self._path):
            return self._sampling.is_told(self.spec.sampler.startup)

    @property
    def waiting(self) -> bool:
        """Whether a try again or a warm start is the next thing that is sampled."""
        with self._lock, storage_errors(self._path):
            return self._sampling.waiting

    def front(self) -> list[TrialRecord]:
        """Return the feasible COMPLETE trials that no other dominates; see `SearchState.front`."""
        with self._lock:
            return self._state.front()

    def hypervolume(self) -> float:
        """Return the exact hypervolume of `front` up to the objectives' reference values."""
        with self._lock:
            return self._state.hypervolume()

    def close(self) -> None:
        """Close Optuna's storage and let another process drive the run; calling twice is fine.

        Trials still in flight become *interrupted* when the study is next opened.
        """
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
