"""The search loop's memory: ask for candidates, tell what became of them, resume."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Self

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.study import StudySpec
from safemerge.config.variant import expert_settings
from safemerge.errors import StudyError
from safemerge.front import front_hypervolume, front_trials
from safemerge.provenance import utc_now
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.agreement import open_agreeing_study
from safemerge.search.open_reference import num_failed, open_references
from safemerge.search.pending import Pending
from safemerge.search.records import Failure, Proposal, Pruned
from safemerge.search.recovery import NUMBER, Recovery
from safemerge.search.retrain import Place, exact_recipe, to_train
from safemerge.search.rung import find_rival, is_audited, may_prune
from safemerge.search.sampling import Sampling, mark_retried
from safemerge.search.space import Reference
from safemerge.search.storage import (
    close_study,
    make_sampler,
    storage_errors,
    storage_path,
)
from safemerge.search.unseen import Drawn, is_covered
from safemerge.search.untrained import check_weights, supplied, unmade_paths, wanted_paths
from safemerge.search.verdict import judge
from safemerge.search.warm_start import study_references
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
        place: Says where an expert with settings of its own is, or comes to; needed where a
            study interpolates between trained values.

    Raises:
        StudyError: If the folder belongs to another study, is damaged, or is in use.
    """

    def __init__(self, spec: StudySpec, store: RunStore, *, place: Place | None = None) -> None:
        store.check_same_study(spec)
        self.spec = spec
        self._place = place
        self.store = store
        self._lock = threading.RLock()
        self._held = ExitStack()
        self._pending: dict[int, Pending] = {}
        self._given_up: set[str] = set()
        self._references: list[Reference] = study_references(spec)
        self._unmade = unmade_paths(spec)
        self._path = storage_path(spec, store.folder)
        with ExitStack() as undo:
            undo.enter_context(store.locked())
            self._records = store.trials()
            check_weights(self._records, spec.trained)
            self._study, self.rebuilt = open_agreeing_study(spec, store.folder, self._records)
            """Why Optuna's storage was begun anew, in one line; None if it agreed."""
            undo.callback(close_study, self._study)
            self._sampling = Sampling(self._study)
            with storage_errors(self._path):
                recovery = Recovery(spec, self._study, self._records)
                for record in recovery.run():
                    self._keep(record)
                trials = self._study.get_trials(deepcopy=False)
                self._sampling.queue_starts(spec, trials)
            self.interrupted: tuple[int, ...] = recovery.interrupted
            """Numbers of the trials that a killed driver had in flight."""
            self._study.sampler = make_sampler(spec, num_existing=len(trials))
            known = [trial.user_attrs[NUMBER] for trial in trials if NUMBER in trial.user_attrs]
            self._next = 1 + max([-1, *known, *(record.number for record in self._records)])
            self._held = undo.pop_all()

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
            pending = self._ask_reference()
            if pending is None and sample:
                pending = self._sampling.ask(self.spec, self._next, self._drawn)
                pending = pending or self._ask_exact()
            if pending is None:
                return None
            self._pending[pending.proposal.number] = pending
            self._next = pending.proposal.number + 1
            return pending.proposal

    def wanted(self, number: int) -> list[str]:
        """Return the folders of models that a proposal in flight waits for."""
        with self._lock:
            return wanted_paths(self._in_flight(number).proposal.recipe, self._unmade)

    def proposal(self, number: int) -> Proposal:
        """Return a proposal in flight as it is now: models that came meanwhile are in it."""
        with self._lock:
            return self._in_flight(number).proposal

    def take(self, made: CheckpointRef) -> None:
        """Take in a model that is trained now: it becomes a reference point, and all right to use.

        Args:
            made: The model, in the folder that recipes wait for, with its fingerprint.

        Raises:
            StudyError: If earlier trials had other weights from that folder.
        """
        with self._lock:
            check_weights(self._records, [made])
            self.spec = self.spec.with_made(made)
            self._unmade.discard(str(made.path))
            self._references = study_references(self.spec)
            for number, pending in self._pending.items():
                recipe = supplied(pending.proposal.recipe, made)
                proposal = replace(pending.proposal, recipe=recipe)
                self._pending[number] = replace(pending, proposal=proposal)

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
            free = free or proposal.exact_of is not None
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
            record = pending.record(verdict, outcome, retried=again)
            with storage_errors(self._path):
                if pending.trial is not None and again:
                    # Before the record, so that a driver killed in between tries again.
                    mark_retried(pending.trial)
                self._keep(record)
                del self._pending[number]
                if pending.trial is not None:
                    values = self._values(record) if record.state == "COMPLETE" else ()
                    self._sampling.tell(pending.trial, record, values)
                    if again:
                        self._sampling.queue_again(self.spec, proposal)
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
                or self._sampling.waiting
                or (self._sampling.num_counted < self.spec.num_trials and not self.covered)
                or to_train(self.spec, self._records, ())
            )

    @property
    def covered(self) -> bool:
        """Whether every recipe that the spaces can express was sampled: the search ends there."""
        with self._lock:
            return is_covered(self.spec, self._drawn)

    @property
    def _drawn(self) -> Drawn:
        return Drawn.of([*self._records, *(item.proposal for item in self._pending.values())])

    @property
    def num_sampled(self) -> int:
        """Recipes sampled so far, those in flight included; tries again count once."""
        with self._lock, storage_errors(self._path):
            return self._sampling.num_counted

    @property
    def startup_told(self) -> bool:
        """Whether none of the recipes is open that are sampled before the sampler learns.

        One that crashed or was interrupted is open until its last try is told.
        """
        with self._lock, storage_errors(self._path):
            return self._sampling.is_told(self.spec.sampler.startup)

    @property
    def waiting(self) -> bool:
        """Whether a try again or a warm start is the next thing that is sampled."""
        with self._lock, storage_errors(self._path):
            return self._sampling.waiting

    def front(self) -> list[TrialRecord]:
        """Return the feasible COMPLETE trials that no other one dominates, by number.

        References take part: a merge that a parent beats is not on the front. Trials with
        interpolated weights do not. A candidate that was told twice is listed once; different
        candidates with equal values all stay.
        """
        return front_trials(self.spec, self.records)

    def hypervolume(self) -> float:
        """Return the exact hypervolume of `front` up to the objectives' reference values."""
        return front_hypervolume(self.spec, self.records)

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

    def _values(self, record: TrialRecord) -> list[float]:
        return [record.objectives[item.metric] for item in self.spec.objectives]

    def _open_references(self) -> list[Reference]:
        return open_references(
            self._references,
            self._records,
            given_up=self._given_up,
            flying={item.proposal.candidate for item in self._pending.values()},
            num_retries=self.spec.evaluator.num_retries,
        )

    def _ask_reference(self) -> Pending | None:
        for label, recipe in self._open_references():
            proposal = Proposal(
                number=self._next,
                role="reference",
                label=label,
                recipe=recipe,
                attempt=num_failed(self._records, recipe.digest),
            )
            return Pending(proposal, utc_now(), None)
        return None

    def _ask_exact(self) -> Pending | None:
        flying = [item.proposal.exact_of for item in self._pending.values()]
        known = [number for number in flying if number is not None]
        if len(known) < len(flying):
            return None  # what is in flight may still change the front
        for record in to_train(self.spec, self._records, known):
            assert self._place is not None, "given where a study interpolates"
            recipe = exact_recipe(record, self._place)
            settings = expert_settings(record.params)
            self._unmade |= {
                str(ref.path)
                for ref in recipe.experts
                if ref.name in settings and ref.digest is None
            }
            proposal = Proposal(
                number=self._next,
                role="sampled",
                label=f"trial {self._next} (trial {record.number} at its exact values)",
                recipe=recipe,
                space=record.space,
                params=dict(record.params),
                exact_of=record.number,
                attempt=sum(item.exact_of == record.number for item in self._records),
            )
            return Pending(proposal, utc_now(), None)
        return None

    def _keep(self, record: TrialRecord) -> None:
        self.store.append(record)
        self._records.append(record)
