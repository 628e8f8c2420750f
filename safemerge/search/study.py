"""The search loop's memory: ask for candidates, tell what became of them, resume."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import optuna

from safemerge.config.study import StudySpec
from safemerge.errors import StudyError
from safemerge.pareto import hypervolume, non_dominated_mask
from safemerge.provenance import utc_now
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.pending import Pending
from safemerge.search.records import Failure, Proposal, Pruned
from safemerge.search.recovery import (
    ATTEMPT,
    NUMBER,
    REASON,
    RETRIED,
    RETRY_OF,
    START,
    Recovery,
)
from safemerge.search.rung import find_rival, is_audited, may_prune
from safemerge.search.space import (
    Reference,
    optuna_params,
    space_by_name,
    suggest,
)
from safemerge.search.storage import (
    close_study,
    make_sampler,
    open_study,
    storage_errors,
    storage_path,
)
from safemerge.search.verdict import judge
from safemerge.search.warm_start import start_plans, study_references
from safemerge.store import RunStore


class SearchStudy:
    """One study, asked and told by a single driver; any number of trials may be in flight.

    The references (each parent, the plain mean, warm starts that no space can express) come
    first and live in the run's store alone, since no search space holds them; then the points
    that are sampled for warm starts. Sampled trials live in Optuna as well, which may be
    rebuilt: ``trials.jsonl`` is the truth. Every trial ends COMPLETE, PRUNED or FAIL with a
    reason. A crashed candidate is proposed again up to ``evaluator.num_retries`` times, each try
    under its own number. Methods may be called from several threads.

    Opening it again resumes: trials that were in flight are recorded as FAIL, *interrupted*,
    and their parameters proposed again before anything new; a trial that finished in one of
    the two stores only is finished in the other.

    Args:
        spec: The study, with checkpoints resolved as far as they will be.
        store: The run's folder, created for the same study.

    Raises:
        StudyError: If the folder belongs to another study, is damaged, or is in use.
    """

    def __init__(self, spec: StudySpec, store: RunStore) -> None:
        store.check_same_study(spec)
        self.spec = spec
        self.store = store
        self._lock = threading.RLock()
        self._held = ExitStack()
        self._pending: dict[int, Pending] = {}
        self._given_up: set[str] = set()
        self._references: list[Reference] = study_references(spec)
        self._path = storage_path(spec, store.folder)
        with ExitStack() as undo:
            undo.enter_context(store.driving())
            self._records = store.trials()
            self._study = open_study(spec, store.folder)
            undo.callback(close_study, self._study)
            with storage_errors(self._path):
                recovery = Recovery(spec, self._study, self._records)
                for record in recovery.run():
                    self._keep(record)
                trials = self._study.get_trials(deepcopy=False)
                self._enqueue_starts(trials)
            self.interrupted: tuple[int, ...] = recovery.interrupted
            """Numbers of the trials that a killed driver had in flight."""
            self._study.sampler = make_sampler(spec, num_existing=len(trials))
            known = [trial.user_attrs[NUMBER] for trial in trials if NUMBER in trial.user_attrs]
            self._next = 1 + max([-1, *known, *(record.number for record in self._records)])
            self._held = undo.pop_all()

    def ask(self) -> Proposal | None:
        """Propose the next candidate.

        References come first, then tries again, then new samples.

        Returns:
            The proposal, or None if there is nothing to propose now: the budget is spent.
            While trials are in flight, a later call may still propose one of them again;
            `done` tells.

        Raises:
            StudyError: If Optuna's storage cannot be used.
            ConfigError: If the drawn values make an illegal recipe.
        """
        with self._lock, storage_errors(self._path):
            pending = self._ask_reference() or self._ask_sampled()
            if pending is None:
                return None
            self._pending[pending.proposal.number] = pending
            self._next = pending.proposal.number + 1
            return pending.proposal

    def promote(self, number: int, found: RungResult) -> Pruned | Failure | None:
        """Decide whether a trial goes on to be scored, by its losses on the low rung.

        Args:
            number: Number of the proposal.
            found: Its losses; they are kept with the trial.

        Returns:
            What to tell about it if it stops here; None if it goes on.

        Raises:
            StudyError: If the trial is not in flight.
        """
        with self._lock:
            pending = self._in_flight(number)
            proposal, rung = pending.proposal, self.spec.rung
            if found.candidate != proposal.candidate:
                told = f"losses of candidate {found.candidate} came back"
                return Failure(f"{told} for {proposal.candidate}")
            free = proposal.role == "reference" or proposal.start is not None
            if rung is None or free:
                self._pending[number] = replace(pending, rung=found)
                return None
            rival = find_rival(rung, found, self._records)
            self._pending[number] = replace(pending, rung=found, rival=rival)
            if rival is None or not may_prune(self._records, startup=self.spec.sampler.startup):
                return None
            audited = is_audited(rung, seed=self.spec.seed, candidate=found.candidate)
            return None if audited else Pruned(rival.reason)

    def tell(self, number: int, outcome: CandidateResult | Failure | Pruned) -> TrialRecord:
        """Finish a trial: first in the store, then in Optuna.

        Args:
            number: Number of the proposal.
            outcome: Its result on the search split, or why there is none.

        Returns:
            The record, as stored.

        Raises:
            StudyError: If the trial is not in flight, or the result is of another split.
            PreflightError: If the disk is full; the trial stays in flight and can be told
                again.
        """
        with self._lock:
            pending = self._in_flight(number)
            proposal = pending.proposal
            verdict = judge(self.spec, proposal, outcome)
            again = verdict.retry and proposal.attempt < self.spec.evaluator.num_retries
            record = pending.record(verdict, outcome)
            with storage_errors(self._path):
                if pending.trial is not None and again:
                    # Before the record, so that a driver killed in between tries again.
                    pending.trial.set_user_attr(RETRIED, True)
                self._keep(record)
                del self._pending[number]
                if pending.trial is not None:
                    self._tell_optuna(pending.trial, record)
                    if again:
                        self._enqueue(proposal)
            if not again and record.state == "FAIL":
                self._given_up.add(record.candidate)
            return record

    def known_result(self, candidate: str) -> CandidateResult | None:
        """Return the result of a candidate that was evaluated already.

        Args:
            candidate: Digest of the candidate.

        Returns:
            Its result on the search split; None if it has none, e.g. because it only failed.
        """
        with self._lock:
            for record in self._records:
                if record.candidate == candidate and record.result is not None:
                    return record.result
        return None

    def known_rung(self, candidate: str) -> RungResult | None:
        """Return the losses of a candidate that was on the low rung already, if it was."""
        with self._lock:
            found = [item.rung for item in self._records if item.candidate == candidate]
        return next((rung for rung in found if rung is not None), None)

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Every finished trial, in the order they finished."""
        with self._lock:
            return tuple(self._records)

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Numbers of the trials that were asked for and not told."""
        with self._lock:
            return tuple(sorted(self._pending))

    @property
    def done(self) -> bool:
        """Whether nothing is in flight and nothing is left to propose."""
        with self._lock, storage_errors(self._path):
            return not (
                self._pending
                or self._open_references()
                or self._waiting()
                or self._num_counted() < self.spec.num_trials
            )

    def front(self) -> list[TrialRecord]:
        """Return the feasible COMPLETE trials that no other one dominates, by number.

        References take part: a merge that a parent beats is not on the front. A candidate
        that was told twice is listed once; different candidates with equal values all stay.
        """
        eligible: dict[str, TrialRecord] = {}
        for record in sorted(self.records, key=lambda item: item.number):
            if record.state == "COMPLETE" and record.feasible:
                eligible.setdefault(record.candidate, record)
        found = list(eligible.values())
        mask = non_dominated_mask([self._values(item) for item in found], self._directions)
        return [item for item, kept in zip(found, mask, strict=True) if kept]

    def hypervolume(self) -> float:
        """Return the exact hypervolume of `front` up to the objectives' reference values."""
        reference = [item.reference for item in self.spec.objectives]
        points = [self._values(item) for item in self.front()]
        return hypervolume(points, reference, self._directions)

    def close(self) -> None:
        """Close Optuna's storage and let another process drive the run; calling twice is fine.

        Trials still in flight become *interrupted* when the study is next opened.
        """
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _in_flight(self, number: int) -> Pending:
        pending = self._pending.get(number)
        if pending is None:
            flight = ", ".join(map(str, sorted(self._pending))) or "none"
            raise StudyError(
                f"trial {number}: must be in flight to be told; got a trial that is not. "
                f"In flight: {flight}."
            )
        return pending

    @property
    def _directions(self) -> list[Any]:
        return [item.direction for item in self.spec.objectives]

    def _values(self, record: TrialRecord) -> list[float]:
        return [record.objectives[item.metric] for item in self.spec.objectives]

    def _open_references(self) -> list[Reference]:
        """References that have neither finished, nor are in flight, nor failed for good."""
        settled = {item.candidate for item in self._records if item.state == "COMPLETE"}
        settled |= self._given_up
        settled |= {item.proposal.candidate for item in self._pending.values()}
        limit = self.spec.evaluator.num_retries
        return [
            item
            for item in self._references
            if (candidate := item.recipe.digest) not in settled
            and self._num_failed(candidate) <= limit
        ]

    def _num_failed(self, candidate: str) -> int:
        return sum(
            item.candidate == candidate and item.state == "FAIL" and item.role == "reference"
            for item in self._records
        )

    def _ask_reference(self) -> Pending | None:
        for label, recipe in self._open_references():
            proposal = Proposal(
                number=self._next,
                role="reference",
                label=label,
                recipe=recipe,
                attempt=self._num_failed(recipe.digest),
            )
            return Pending(proposal, utc_now(), None)
        return None

    def _waiting(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))

    def _num_counted(self) -> int:
        """Sampled candidates against the budget: a try again counts with its first try."""
        trials = self._study.get_trials(deepcopy=False)
        again = [
            trial.state == optuna.trial.TrialState.FAIL and trial.user_attrs.get(RETRIED, False)
            for trial in trials
        ]
        return again.count(False)

    def _ask_sampled(self) -> Pending | None:
        if not self._waiting() and self._num_counted() >= self.spec.num_trials:
            return None
        trial = self._study.ask()
        try:
            space, params, recipe = suggest(trial, self.spec)
        except BaseException as error:
            trial.set_user_attr(REASON, str(error) or type(error).__name__)
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        number = self._next
        trial.set_user_attr(NUMBER, number)
        proposal = Proposal(
            number=number,
            role="sampled",
            label=f"trial {number}",
            recipe=recipe,
            space=space,
            params=params,
            start=trial.user_attrs.get(START),
            attempt=int(trial.user_attrs.get(ATTEMPT, 0)),
        )
        return Pending(proposal, utc_now(), trial)

    def _keep(self, record: TrialRecord) -> None:
        self.store.append(record)
        self._records.append(record)

    def _tell_optuna(self, trial: optuna.Trial, record: TrialRecord) -> None:
        if record.reason is not None:
            trial.set_user_attr(REASON, record.reason)
        if record.state != "COMPLETE":
            self._study.tell(trial, state=optuna.trial.TrialState[record.state])
            return
        # NOTE: samplers read constraints from the finished trial, so they come before tell.
        for metric, violation in record.violations.items():
            trial.set_constraint(metric, violation)
        self._study.tell(trial, self._values(record))

    def _enqueue(self, proposal: Proposal) -> None:
        space = space_by_name(self.spec, proposal.space or "")
        start = {} if proposal.start is None else {START: proposal.start}
        self._study.enqueue_trial(
            optuna_params(self.spec, space, proposal.params),
            user_attrs={RETRY_OF: proposal.number, ATTEMPT: proposal.attempt + 1, **start},
        )

    def _enqueue_starts(self, trials: Sequence[optuna.trial.FrozenTrial]) -> None:
        """Let the warm starts be sampled that neither have been nor wait to be."""
        waiting = optuna.trial.TrialState.WAITING
        # One that was killed while it was being asked for has no number: it is sampled anew.
        taken = {
            trial.user_attrs.get(START)
            for trial in trials
            if NUMBER in trial.user_attrs or trial.state == waiting
        }
        for start, _, point, _ in start_plans(self.spec):
            if point is not None and start.name not in taken:
                space = space_by_name(self.spec, point.space)
                self._study.enqueue_trial(
                    optuna_params(self.spec, space, point.params), user_attrs={START: start.name}
                )
