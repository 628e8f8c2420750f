"""Optuna's side of a study: what is sampled, finished and tried again."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import TrialState

from safemerge.config.study import StudySpec
from safemerge.provenance import utc_now
from safemerge.records import TrialRecord
from safemerge.search.bayesian_sampler import EXPECTED_GAIN
from safemerge.search.known import REFERENCE, add_references
from safemerge.search.noise import VARIANCES, variances
from safemerge.search.pending import Pending
from safemerge.search.records import Proposal
from safemerge.search.recovery import ATTEMPT, NUMBER, REASON, RETRIED, RETRY_OF, START
from safemerge.search.space import Suggestion, optuna_params, space_by_name, suggest
from safemerge.search.unseen import Drawn, unseen
from safemerge.search.warm_start import start_plans

if TYPE_CHECKING:
    import optuna

_MAX_REPEATS = 10
"""How often a sampler may draw what was drawn before, until something else is taken."""


class _Outcome(NamedTuple):
    """What became of a trial."""

    trial: optuna.Trial
    record: TrialRecord
    values: Sequence[float]

    def tell(self, study: optuna.Study) -> None:
        """Let Optuna know."""
        if self.record.state != "COMPLETE":
            study.tell(self.trial, state=TrialState[self.record.state])
            return
        # NOTE: samplers read constraints from the finished trial, so they come before tell.
        for metric, violation in self.record.violations.items():
            self.trial.set_constraint(metric, violation)
        self.trial.set_user_attr(VARIANCES, variances(self.record))
        study.tell(self.trial, self.values)


class Sampling:
    """Asks Optuna for recipes and tells it what became of them.

    Args:
        study: Optuna's study; from now on no one else adds trials to it or ends them.
        round_size: Recipes of a round that know nothing of each other; None if each knows all
            that is finished.
    """

    def __init__(self, study: optuna.Study, *, round_size: int | None = None) -> None:
        self._study = study
        self._round_size = round_size
        self._withheld: dict[int, _Outcome] = {}
        """What this round found, by Optuna's number."""
        trials = study.get_trials(deepcopy=False)
        self._queue = {trial.number for trial in trials if trial.state == TrialState.WAITING}
        self._counted = {
            trial.number: trial.state.is_finished() for trial in trials if not _is_free(trial)
        }
        """Whether it is finished, by Optuna's number, of what counts against the budget."""

    @property
    def waiting(self) -> bool:
        """Whether something is queued: tries again, warm starts."""
        return bool(self._queue)

    @property
    def num_counted(self) -> int:
        """Sampled candidates against the budget: a try again counts with its first try."""
        return len(self._counted)

    @property
    def awaits_round(self) -> bool:
        """Whether the next recipe must wait for results of its round."""
        if self._round_size is None or self.waiting or self.num_counted % self._round_size:
            return False
        return not self.is_told(self.num_counted)

    def is_told(self, count: int) -> bool:
        """Whether none of the first `count` candidates against the budget is open."""
        return all(itertools.islice(self._counted.values(), count))

    def ask(self, spec: StudySpec, number: int, drawn: Drawn) -> Pending | None:
        """Sample the next recipe.

        A sampler that draws what was drawn before is asked again, and costs no budget; where it
        insists, one of the recipes that are left is taken instead.

        Args:
            spec: The study.
            number: What the proposal is numbered.
            drawn: What was sampled so far.

        Returns:
            The proposal; None if the budget is spent or the spaces are exhausted.

        Raises:
            ConfigError: If the drawn values make an illegal recipe.
        """
        if not self.waiting and self.num_counted >= spec.num_trials:
            return None
        if self._round_size and self.num_counted % self._round_size == 0:
            self.tell_withheld()
        asked = self._ask_new(spec, drawn)
        if asked is None:
            return None
        trial, (space, params, recipe) = asked
        trial.set_user_attr(NUMBER, number)
        attributes = trial.user_attrs
        proposal = Proposal(
            number=number,
            role="sampled",
            label=f"trial {number}",
            recipe=recipe,
            space=space,
            params=params,
            start=attributes.get(START),
            attempt=int(attributes.get(ATTEMPT, 0)),
            expected_gain=self._expected_gain(trial),
        )
        return Pending(proposal, utc_now(), trial, attributes.get(RETRY_OF))

    def _expected_gain(self, trial: optuna.Trial) -> float | None:
        """Return what its sampler wrote down, beside Optuna's cached copy of the trial."""
        stored = self._study._storage.get_trial(trial._trial_id)
        found: float | None = stored.user_attrs.get(EXPECTED_GAIN)
        return found

    def _ask_new(self, spec: StudySpec, drawn: Drawn) -> tuple[optuna.Trial, Suggestion] | None:
        """Ask until a draw is no repeat; what was queued is taken as it is."""
        for attempt in range(_MAX_REPEATS + 1):
            if attempt == _MAX_REPEATS:
                left = unseen(spec, drawn)
                if left is None:
                    return None
                space = space_by_name(spec, left.space)
                self._enqueue(optuna_params(spec, space, left.params))
            trial = self._study.ask()
            self._queue.discard(trial.number)
            self._counted[trial.number] = False
            queued = RETRY_OF in trial.user_attrs or START in trial.user_attrs
            try:
                found = suggest(trial, spec)
            except Exception as error:
                # NOTE: not where Ctrl-C struck: what is left running costs none of the budget.
                self._drop(trial, str(error) or type(error).__name__)
                raise
            if queued or attempt == _MAX_REPEATS or found not in drawn:
                return trial, found
            self._drop(trial, "drawn before")
        return None

    def _drop(self, trial: optuna.Trial, reason: str) -> None:
        """End a trial that is none: without a number it costs no budget."""
        trial.set_user_attr(REASON, reason)
        self._study.tell(trial, state=TrialState.FAIL)
        del self._counted[trial.number]

    def tell(self, trial: optuna.Trial, record: TrialRecord, values: Sequence[float]) -> None:
        """Finish a trial as its record has it.

        Args:
            trial: Optuna's side of it.
            record: Its record, stored already.
            values: Its objectives' values; read where it is COMPLETE.
        """
        if record.reason is not None:
            trial.set_user_attr(REASON, record.reason)
        outcome = _Outcome(trial, record, values)
        if self._round_size is None:
            outcome.tell(self._study)
        else:
            self._withheld[trial.number] = outcome
        self._end(trial, retried=record.retried)

    def tell_withheld(self) -> None:
        """Tell Optuna what the last round found, in the order in which it was drawn."""
        for number in sorted(self._withheld):
            self._withheld.pop(number).tell(self._study)

    def _end(self, trial: optuna.Trial, *, retried: bool) -> None:
        if retried:
            del self._counted[trial.number]
        else:
            self._counted[trial.number] = True

    def tell_references(self, spec: StudySpec, records: Iterable[TrialRecord]) -> None:
        """Let the sampler know of reference points that the spaces express, once each."""
        add_references(self._study, spec, records)

    def queue_again(self, spec: StudySpec, proposal: Proposal) -> None:
        """Let a proposal that crashed be sampled once more."""
        space = space_by_name(spec, proposal.space or "")
        start = {} if proposal.start is None else {START: proposal.start}
        attributes = {RETRY_OF: proposal.number, ATTEMPT: proposal.attempt + 1, **start}
        self._enqueue(optuna_params(spec, space, proposal.params), attributes)

    def queue_starts(self, spec: StudySpec) -> None:
        """Let the warm starts be sampled that neither have been nor wait to be."""
        trials = self._study.get_trials(deepcopy=False)
        # One that was killed while it was being asked for has no number: it is sampled anew.
        taken = {
            trial.user_attrs.get(START)
            for trial in trials
            if NUMBER in trial.user_attrs or trial.state == TrialState.WAITING
        }
        for start, _, point, _ in start_plans(spec):
            if point is not None and start.name not in taken:
                space = space_by_name(spec, point.space)
                self._enqueue(optuna_params(spec, space, point.params), {START: start.name})

    def _enqueue(self, params: dict[str, Any], attributes: dict[str, Any] | None = None) -> None:
        self._study.enqueue_trial(params, user_attrs=attributes)
        number = self._study._storage.get_n_trials(self._study._study_id) - 1
        self._queue.add(number)
        self._counted[number] = False


def _is_free(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial costs no budget: a reference, one without a record or that is retried."""
    if REFERENCE in trial.user_attrs:
        return True
    failed = trial.state == TrialState.FAIL
    return failed and (
        NUMBER not in trial.user_attrs or bool(trial.user_attrs.get(RETRIED, False))
    )


def mark_retried(trial: optuna.Trial) -> None:
    """Note that a failed trial is tried again, before it is recorded that it failed."""
    trial.set_user_attr(RETRIED, True)
