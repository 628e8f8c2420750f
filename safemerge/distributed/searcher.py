"""Our Ray Tune searcher: Optuna's ask and tell through `SearchStudy`, with honest states.

Not Tune's own ``OptunaSearch``: with two objectives a missing or NaN result leaves its trial
RUNNING for ever, and it has no hook for constraints.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from safemerge.distributed.background_training import Supply
from safemerge.distributed.trainable import (
    FAILURE,
    NO_REPLICA,
    RESULT,
    RETRY,
    SCREENED,
    WRONG,
)
from safemerge.errors import NoReplicaError, SafemergeError, StudyError, UserError
from safemerge.records import CandidateResult, RungResult, TrialRecord
from safemerge.search.records import Failure, Proposal, Pruned
from safemerge.search.study import SearchStudy


class StudySearcher(Searcher):
    """Hands a study's proposals to Tune and tells the study what became of them.

    A proposal whose ingredients are still to be trained is held back here, where it holds neither
    a trial nor an evaluator; the search continues with ingredients that exist. Which of them is
    ready first must not tip the sampler, so none of the recipes after its `startup` is drawn
    before all of those are on their way; later it may hold back as many as run side by side.

    Args:
        study: The study; lives in the driver. What is in flight is held back.
        on_record: Called with every finished trial.
        supply: Trains ingredients; None if all of them exist.
        at_once: How many trials run side by side.
    """

    def __init__(
        self,
        study: SearchStudy,
        *,
        on_record: Callable[[TrialRecord], None],
        supply: Supply | None = None,
        at_once: int = 1,
    ) -> None:
        super().__init__()
        self._study = study
        self._on_record = on_record
        self._supply = supply
        self._at_once = at_once
        self._held: list[int] = list(study.in_flight)
        self._numbers: dict[str, int] = {}
        self._stopped: dict[str, Pruned | Failure] = {}
        self._end: SafemergeError | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial's configuration, or that there is none left.

        Raises:
            UserError, NoReplicaError: See `refuse_wrong`, and `Supply.delivered`.
        """
        self.refuse_wrong()
        while True:
            self._take_deliveries()
            if self._study.done:
                return str(Searcher.FINISHED)
            proposal = self._next()
            if proposal is None:
                # Trials in flight may still have to be tried again, and ingredients may come.
                return str(Searcher.FINISHED) if self._gives_way() else None
            ended: CandidateResult | Pruned | Failure | None
            ended = self._study.known_result(proposal.candidate)
            losses = None if ended else self._study.known_rung(proposal.candidate)
            if losses is not None:
                ended = self._study.promote(proposal.number, losses)
            if ended is None:
                break
            self._on_record(self._study.tell(proposal.number, ended))
        self._numbers[trial_id] = proposal.number
        return _config(proposal, screened=losses is not None)

    def refuse_wrong(self) -> None:
        """End the search if a trial met what no other one can do better with.

        That trial stays in flight: it is asked again when the search is resumed.

        Raises:
            UserError: If files of the user's are wrong by now.
            NoReplicaError: If no replica takes recipes any more.
        """
        if self._end is not None:
            raise self._end

    def _take_deliveries(self) -> None:
        """Add what was trained; end the proposals that wait for what could not be.

        Where nothing can be trained they are left as they are: the search ends, and asks them
        again once it is resumed.
        """
        if self._supply is None:
            return
        for delivery in self._supply.delivered():
            if delivery.made is not None:
                self._study.add_trained(delivery.made)
                continue
            if self._supply.exhausted is not None:
                continue
            for number in [*self._held]:
                if delivery.path in self._study.wanted(number):
                    self._held.remove(number)
                    failure = Failure(delivery.error, retry=not delivery.final)
                    self._on_record(self._study.tell(number, failure))

    def _next(self) -> Proposal | None:
        """Return a proposal whose ingredients exist, and let those be trained that do not."""
        for number in self._held:
            if not self._study.wanted(number):
                self._held.remove(number)
                return self._study.proposal(number)
        while True:
            proposal = self._study.ask(sample=self._may_sample())
            if proposal is None:
                return None
            wanted = self._study.wanted(proposal.number)
            if not wanted:
                return proposal
            assert self._supply is not None, "only a study with a supply has models to be made"
            self._held.append(proposal.number)
            for path in wanted:
                self._supply.want(path)
            self._take_deliveries()

    def _may_sample(self) -> bool:
        if self._supply is not None and self._supply.exhausted is not None:
            return False
        if not self._held or self._study.waiting:
            return True  # what is tried again and warm starts are not drawn
        spec, num_sampled = self._study.spec, self._study.num_sampled
        if num_sampled < spec.sampler.startup:
            return True
        if num_sampled >= spec.num_trials:
            return True  # nothing is sampled any more: what is left is all to be trained
        return len(self._held) < self._at_once and self._study.startup_finished

    def _gives_way(self) -> bool:
        """Whether there is nothing left to do but to train, and no room for it beside."""
        if self._supply is None or self._numbers:
            return False
        return self._supply.waiting or self._supply.exhausted is not None

    def promote(self, trial_id: str, found: RungResult) -> bool:
        """Say whether a trial continues from the low rung; the scheduler stops it if not."""
        stopped = self._study.promote(self._numbers[trial_id], found)
        if stopped is not None:
            self._stopped[trial_id] = stopped
        return stopped is None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study: a result, or why there is none."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        outcome: CandidateResult | Failure | Pruned | None = self._stopped.pop(trial_id, None)
        if (
            outcome is None
            and result is not None
            and (result.get(WRONG) or result.get(NO_REPLICA))
        ):
            kind = UserError if result.get(WRONG) else NoReplicaError
            self._end = self._end or kind(str(result[FAILURE]))
            return
        if outcome is not None:
            pass
        elif not error and result is not None and RESULT in result:
            outcome = CandidateResult.model_validate_json(result[RESULT])
        elif result is not None and FAILURE in result:
            outcome = Failure(str(result[FAILURE]), retry=bool(result.get(RETRY, True)))
        else:
            outcome = Failure("the trial's process ended without a result")
        self._on_record(self._study.tell(number, outcome))

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing to learn before a trial is complete; the scheduler has asked about the rung."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its set-up for its own way to resume, which is not ours.
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> StudySearcher:
        return self  # one study has one driver

    def save(self, checkpoint_path: str) -> None:
        """Leave Tune an empty file: the run's folder is the state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a study resumes from its own folder."""
        raise StudyError(
            f"{checkpoint_path}: a study resumes from its run folder; got a Tune checkpoint. "
            "Use `safemerge search … --resume`."
        )


def _config(proposal: Proposal, *, screened: bool) -> dict[str, Any]:
    recipe = proposal.recipe.model_dump_json(by_alias=True)
    return {"number": proposal.number, "recipe": recipe, SCREENED: screened}
