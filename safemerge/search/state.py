"""The search loop's state: what is in flight, finished, and next; no file, no Optuna.

`SearchStudy` keeps it, stores what it decides, and samples; tests drive it alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.study import StudySpec
from safemerge.config.variant import expert_settings
from safemerge.errors import StudyError
from safemerge.provenance import utc_now
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.finished import FinishedTrials
from safemerge.search.pending import Pending
from safemerge.search.records import Failure, Proposal, Pruned
from safemerge.search.retrain import Place, exact_recipe, to_train
from safemerge.search.rung import find_rival, is_audited
from safemerge.search.space import Reference
from safemerge.search.spent import Spent
from safemerge.search.unseen import Coverage, Drawn
from safemerge.search.untrained import check_weights, supplied, untrained_paths, wanted_paths
from safemerge.search.verdict import judge
from safemerge.search.warm_start import study_references


@dataclass(frozen=True)
class Ending:
    """How a trial ends, before it is stored."""

    pending: Pending
    record: TrialRecord
    retried: bool
    """Whether the candidate is proposed again."""


class SearchState:
    """What a search knows, and the rules of what it proposes and how a trial ends.

    Args:
        spec: The study, with checkpoints resolved as far as they will be.
        records: Every finished trial, in the order they finished.
        place: Says where an expert with settings of its own is or will be; needed where a
            study interpolates between trained values.

    Raises:
        StudyError: If earlier trials had other weights from the study's folders.
    """

    def __init__(
        self, spec: StudySpec, records: Iterable[TrialRecord] = (), *, place: Place | None = None
    ) -> None:
        self.spec = spec
        self._finished = FinishedTrials(spec, records)
        self.pending: dict[int, Pending] = {}
        """Proposals in flight by number."""
        self.untrained = untrained_paths(spec)
        """Folders of models that are not trained yet."""
        self.next_number = 1 + max((record.number for record in self.records), default=-1)
        self._place = place
        self._spent = Spent(spec, self.records)
        self._ended_by: str | None = None
        self._exhausted: set[str] = set()
        self._place_references()
        check_weights(self.records, spec.trained)

    @property
    def records(self) -> list[TrialRecord]:
        """Every finished trial, in the order they finished."""
        return self._finished.records

    def add(self, record: TrialRecord) -> None:
        """Add a finished trial."""
        self._finished.add(record)
        self._spent.add(record)

    def _place_references(self) -> None:
        """List the reference points of the study as it is now, with their digests."""
        self._references = [(item, item.recipe.digest) for item in study_references(self.spec)]
        self._coverage = Coverage(self.spec)

    # --- proposals ----------------------------------------------------------------------

    def next_reference(self) -> Pending | None:
        """Propose a reference point that is still to be evaluated."""
        for (label, recipe), candidate in self._open_references():
            proposal = Proposal(
                number=self.next_number,
                role="reference",
                label=label,
                recipe=recipe,
                attempt=self._finished.failed_references[candidate],
            )
            return Pending(proposal, utc_now(), None)
        return None

    def next_exact(self) -> Pending | None:
        """Propose what would be on the front with interpolated weights, at its exact values."""
        if not self._finished.any_interpolated:
            return None
        flying = [item.proposal.exact_of for item in self.pending.values()]
        known = [number for number in flying if number is not None]
        if len(known) < len(flying):
            return None  # what is in flight may still change the front
        for record in to_train(self.spec, self.records, known):
            assert self._place is not None, "given where a study interpolates"
            recipe = exact_recipe(record, self._place)
            settings = expert_settings(record.params)
            self.untrained |= {
                str(ref.path)
                for ref in recipe.experts
                if ref.name in settings and ref.digest is None
            }
            proposal = Proposal(
                number=self.next_number,
                role="sampled",
                label=f"trial {self.next_number} (trial {record.number} at its exact values)",
                recipe=recipe,
                space=record.space,
                params=dict(record.params),
                exact_of=record.number,
                attempt=self._finished.exact_tries[record.number],
            )
            return Pending(proposal, utc_now(), None)
        return None

    def start(self, pending: Pending) -> Proposal:
        """Put a proposal in flight."""
        self.pending[pending.proposal.number] = pending
        self.drawn.add(pending.proposal)
        self.next_number = pending.proposal.number + 1
        return pending.proposal

    def _open_references(self) -> list[tuple[Reference, str]]:
        """Return the references that are neither finished, nor in flight, nor failed for good."""
        found, retries = self._finished, self.spec.evaluator.num_retries
        left = [
            (item, candidate)
            for item, candidate in self._references
            if candidate not in found.complete
            and candidate not in self._exhausted
            and found.failed_references[candidate] <= retries
        ]
        if left:
            flying = {item.proposal.candidate for item in self.pending.values()}
            left = [(item, candidate) for item, candidate in left if candidate not in flying]
        return left

    def is_done(self, *, num_sampled: int, waiting: bool) -> bool:
        """Whether nothing is in flight and nothing is left to propose.

        Args:
            num_sampled: Recipes sampled so far, against the budget.
            waiting: Whether a try again or a warm start waits to be sampled.
        """
        return not (
            self.pending
            or self._open_references()
            or waiting
            or (num_sampled < self.spec.num_trials and not self.covered and self.ended_by is None)
            or (self._finished.any_interpolated and to_train(self.spec, self.records, ()))
        )

    @property
    def ended_by(self) -> str | None:
        """Which of the study's `budget` is spent, in words: nothing new is sampled; else None."""
        if self._ended_by is None:
            oldest = min((item.started_at for item in self.pending.values()), default=None)
            self._ended_by = self._spent.ended_by(oldest)
        return self._ended_by

    @property
    def drawn(self) -> Drawn:
        """What was sampled so far, in flight or finished."""
        return self._finished.drawn

    @property
    def covered(self) -> bool:
        """Whether every recipe that the spaces can express was sampled: the search ends there."""
        return self._coverage.is_covered(self.drawn)

    # --- trials in flight ---------------------------------------------------------------

    def in_flight(self, number: int) -> Pending:
        """Return a proposal in flight.

        Raises:
            StudyError: If it is not in flight.
        """
        pending = self.pending.get(number)
        if pending is None:
            flight = ", ".join(map(str, sorted(self.pending))) or "none"
            raise StudyError(
                f"trial {number}: must be in flight to be reported; got a trial that is not. "
                f"In flight: {flight}."
            )
        return pending

    def wanted(self, number: int) -> list[str]:
        """Return the folders of models that a proposal in flight waits for."""
        return wanted_paths(self.in_flight(number).proposal.recipe, self.untrained)

    def add_trained(self, made: CheckpointRef) -> None:
        """Add a model that is trained now: it becomes a reference point, and recipes may use it.

        Args:
            made: The model, in the folder that recipes wait for, with its fingerprint.

        Raises:
            StudyError: If earlier trials had other weights from that folder.
        """
        check_weights(self.records, [made])
        self.spec = self.spec.with_made(made)
        self.untrained.discard(str(made.path))
        self._place_references()
        for number, pending in self.pending.items():
            recipe = supplied(pending.proposal.recipe, made)
            proposal = replace(pending.proposal, recipe=recipe)
            self.pending[number] = replace(pending, proposal=proposal)

    def promote(self, number: int, found: RungResult) -> Pruned | Failure | None:
        """Decide whether a trial is promoted to be scored, by its losses on the low rung.

        Args:
            number: Number of the proposal.
            found: Its losses; they are kept with the trial.

        Returns:
            What to report of it if it stops here; None if it is promoted.

        Raises:
            StudyError: If the trial is not in flight.
        """
        pending = self.in_flight(number)
        proposal, rung = pending.proposal, self.spec.rung
        if found.candidate != proposal.candidate:
            returned = f"losses of candidate {found.candidate} came back"
            return Failure(f"{returned} for {proposal.candidate}")
        free = proposal.role == "reference" or proposal.start is not None
        free = free or proposal.exact_of is not None
        if rung is None or free:
            self.pending[number] = replace(pending, rung=found)
            return None
        rival = find_rival(rung, found, self.records)
        self.pending[number] = replace(pending, rung=found, rival=rival)
        # Pruned trials have no values: with too few others a sampler would take them for good.
        if rival is None or self._finished.num_scored < self.spec.sampler.startup:
            return None
        audited = is_audited(rung, seed=self.spec.seed, candidate=found.candidate)
        return None if audited else Pruned(rival.reason)

    def ending(self, number: int, outcome: CandidateResult | Failure | Pruned) -> Ending:
        """Decide how a trial ends; it stays in flight until it is `finish`ed.

        Args:
            number: Number of the proposal.
            outcome: Its result on the search split, or why there is none.

        Raises:
            StudyError: If the trial is not in flight, or the result is of another split.
        """
        pending = self.in_flight(number)
        verdict = judge(self.spec, pending.proposal, outcome)
        again = verdict.retry and pending.proposal.attempt < self.spec.evaluator.num_retries
        return Ending(pending, pending.record(verdict, outcome, retried=again), again)

    def finish(self, ending: Ending) -> None:
        """Take a trial out of flight, now that its record is stored."""
        record = ending.record
        self.add(record)
        del self.pending[record.number]
        if record.state == "FAIL" and not ending.retried:
            self._exhausted.add(record.candidate)

    # --- results ------------------------------------------------------------------------

    def known_result(self, candidate: str) -> CandidateResult | None:
        """Return the result of a candidate that was evaluated already.

        Args:
            candidate: Digest of the candidate.

        Returns:
            Its result on the search split; None if it has none, e.g. because it only failed.
        """
        return self._finished.result_by_candidate.get(candidate)

    def known_rung(self, candidate: str) -> RungResult | None:
        """Return the losses of a candidate that was on the low rung already, if it was."""
        return self._finished.rung_by_candidate.get(candidate)

    def front(self) -> list[TrialRecord]:
        """Return the feasible COMPLETE trials that no other one dominates, by number.

        References take part: a merge that a parent beats is not on the front. Trials with
        interpolated weights do not. A candidate that was reported twice is listed once; different
        candidates with equal values all stay.
        """
        return self._finished.front.trials()

    def hypervolume(self) -> float:
        """Return the exact hypervolume of `front` up to the objectives' reference values."""
        return self._finished.front.hypervolume()

    def values(self, record: TrialRecord) -> list[float]:
        """Return a COMPLETE trial's objective values, in the study's order."""
        return [record.objectives[item.metric] for item in self.spec.objectives]
