"""The Ray Serve evaluator: replicas that own an engine each and score one recipe at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter
from ray import serve

from safemerge.config.models import study_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec, StudySpec
from safemerge.data.suite import load_suites
from safemerge.distributed.judge import bound_judges, judge_maker, judges_until
from safemerge.distributed.request import DEPLOYMENT, Request
from safemerge.distributed.rung import RungPairs
from safemerge.distributed.serving import (
    Application,
    EngineReplica,
    placed,
    received,
)
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Engine, TokenizedPrompt
from safemerge.engines.launch import start_engine
from safemerge.errors import EngineError, SafemergeError
from safemerge.evaluation import (
    AnsweredSplit,
    answer_candidate,
    prepare_split,
    score_candidate,
)
from safemerge.inputs import check_texts
from safemerge.merge.candidate_tokenizer import candidate_tokenizer
from safemerge.records import CandidateResult, RungResult, Split
from safemerge.weights.hub import refs_on_this_node

_Answer = TypeVar("_Answer")

CANARY_PROMPT = "Say hello."
CANARY_EVERY_S = 30.0
"""An idle engine is asked this often whether it still answers."""
CANARY_TIMEOUT_S = 120.0
JUDGED_WITHIN = 0.8
"""Share of a candidate's time after which answers that no judge has judged are unscored: the
candidate then ends with that reason, and not with its own time-out."""


class EvaluatorReplica(EngineReplica):
    """One replica: an engine, the study's prompts tokenised, one candidate at a time.

    Args:
        study: JSON of a study whose checkpoints are resolved to paths.
        judges: Handles of the judges that are deployments; see `bound_judges`.

    What is wrong with the user's files when a replica starts, or starts again, is raised to
    whoever asks it first.
    """

    def __init__(self, study: str, judges: Mapping[str, Any] | None = None) -> None:
        evaluator = EvaluatorSpec.model_validate(json.loads(study)["evaluator"])
        self._timeout_s = evaluator.timeout_s
        # Beside the engine's thread two: judges elsewhere are waited for while it answers the
        # next, and that one's answers need not wait for them either.
        super().__init__(evaluator, what="evaluator", request="a candidate", threads_beside=2)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._last_answer = 0.0
        self._engine: Engine | None = None
        self._pairs: RungPairs | None = None
        with self.starting():
            # What a package adds may be missing on this node.
            self._spec = received(study, TypeAdapter(StudySpec), what="study")
            self._set_up(judges or {})

    def _set_up(self, judges: Mapping[str, Any]) -> None:
        self._spec = self._spec.with_checkpoints(refs_on_this_node(self._spec.all_checkpoints))
        check_texts(self._spec)
        self._models = study_models(self._spec)
        self._chat = ChatFormat(candidate_tokenizer(self._models), self._spec.chat)
        evaluator = self._spec.evaluator
        self._prepared = {
            split: prepare_split(
                suites,
                self._chat,
                max_model_len=evaluator.max_model_len,
                make_judge=judge_maker(judges, self._spec.judge_service),
            )
            for split, suites in load_suites(self._spec).items()
        }
        if (rung := self._spec.rung) is not None:
            self._pairs = RungPairs(
                rung, self._chat, max_model_len=evaluator.max_model_len, seed=self._spec.seed
            )
        self._engine = self._start_engine()

    def _start_engine(self) -> Engine:
        return start_engine(
            self._models, self._spec.evaluator, cpu_ids=self.cpu_ids, in_process=True
        )

    async def score(self, recipe: str, split: Split) -> CandidateResult:
        """Merge a recipe, answer a split's prompts, score the answers.

        Args:
            recipe: JSON of a resolved recipe.
            split: ``search`` or ``report``.

        Raises:
            EngineError: If the engine failed; it is rebuilt before the next candidate.
            ScoringError: If too many responses are unscored.
            UserError: If the replica could not be set up, or a checkpoint's file changed.
        """
        deadline = time.monotonic() + JUDGED_WITHIN * self._timeout_s
        loop = asyncio.get_running_loop()
        answered = await loop.run_in_executor(self._thread, self._answer, recipe, split)
        return await loop.run_in_executor(self._beside, self._score, answered, split, deadline)

    async def screen(self, recipe: str) -> RungResult | CandidateResult:
        """Merge a recipe and take its losses on the study's low rung.

        Args:
            recipe: JSON of a resolved recipe.

        Returns:
            See `RungPairs.screen`.

        Raises:
            EngineError: If the engine failed; it is rebuilt before the next candidate.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._screen, recipe)

    def _screen(self, recipe: str) -> RungResult | CandidateResult:
        def ask(engine: Engine) -> RungResult | CandidateResult:
            assert self._pairs is not None, "asked only in studies with a rung"
            asked = MergeRecipe.model_validate_json(recipe)
            return self._pairs.screen(engine, asked, replica=self._name)

        return self._with_engine(ask)

    def _answer(self, recipe: str, split: Split) -> AnsweredSplit:
        return self._with_engine(
            lambda engine: answer_candidate(
                engine, MergeRecipe.model_validate_json(recipe), self._prepared[split]
            )
        )

    def _with_engine(self, ask: Callable[[Engine], _Answer]) -> _Answer:
        """Ask the engine something; one that fails is rebuilt before the next candidate."""
        try:
            with self.busy():
                if self._engine is None:
                    self._engine = self._start_engine()
                answered = ask(self._engine)
        except SafemergeError as error:
            if isinstance(error, EngineError):
                self.close_engine()
            raise
        except Exception as error:
            # An engine whose process died raises types of its own; nothing of it is reused.
            self.close_engine()
            raise EngineError(f"evaluator: the engine failed; got: {error!r}.") from error
        self._last_answer = time.monotonic()
        return answered

    def _score(self, answered: AnsweredSplit, split: Split, deadline: float) -> CandidateResult:
        prepared = self._prepared[split]
        return score_candidate(
            answered,
            dataclasses.replace(prepared, judges=judges_until(prepared.judges, deadline)),
            aggregates=self._spec.aggregates,
            max_unscored=self._spec.evaluator.max_unscored,
            replica=self._name,
        )

    def close_engine(self) -> None:
        """End the engine; the next candidate starts another."""
        engine, self._engine = getattr(self, "_engine", None), None
        if engine is not None:
            engine.close()

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica: an engine that can't answer is restarted.

        Raises:
            EngineError: If a candidate takes longer than the study's timeout, or an idle engine
                does not answer the canary prompt.
        """
        await super().check_health()
        if self._busy_since is not None:
            return
        if self._engine is None or time.monotonic() - self._last_answer < CANARY_EVERY_S:
            return
        loop = asyncio.get_running_loop()
        await asyncio.wait_for(
            loop.run_in_executor(self._thread, self._canary), timeout=CANARY_TIMEOUT_S
        )

    def _canary(self) -> None:
        if self._engine is None or self._last_answer == 0.0:
            return  # nothing was loaded yet; starting the engine was proof enough
        ids = tuple(self._chat.prompt_ids(CANARY_PROMPT))
        answers = self._engine.generate([TokenizedPrompt("canary", ids, max_tokens=1)])
        if len(answers) != 1 or answers[0].num_tokens != 1:
            raise EngineError(f"evaluator: the canary prompt got {len(answers)} answers.")
        self._last_answer = time.monotonic()


class Evaluator(Application):
    """A running evaluator with its judges.

    Args:
        spec: Study whose checkpoints are resolved to paths.
        app: Name of the Serve application.

    Raises:
        PreflightError, EngineError: See `Application`.
    """

    replica = EvaluatorReplica
    """Class of its replicas."""

    def __init__(self, spec: StudySpec, *, app: str) -> None:
        evaluator = placed(spec.evaluator)
        spec = spec.model_copy(update={"evaluator": evaluator})
        judges, service = spec.served_judges, spec.judge_service
        super().__init__(
            self.replica,
            spec.model_dump_json(by_alias=True),
            *([bound_judges(judges, service)] if judges else []),
            app=app,
            deployment=DEPLOYMENT,
            what="evaluator",
            evaluator=evaluator,
            at_once=candidates_at_once(spec),
            judges=judges,
            service=service,
            health_check_timeout_s=CANARY_TIMEOUT_S + 10,
        )

    def score(self, recipe: MergeRecipe, split: Split) -> CandidateResult:
        """Score one recipe on one split; blocks until a replica has done it."""
        response = self._handle.score.remote(recipe.model_dump_json(by_alias=True), split)
        request = Request(response, timeout_s=self._placed.timeout_s, what="evaluator")
        result: CandidateResult = request.result()
        return result

    def score_all(self, recipes: list[MergeRecipe], split: Split) -> Iterator[CandidateResult]:
        """Score recipes side by side over the replicas; yield each, in the given order.

        A recipe whose replica crashed is tried again as often as the study allows.
        """
        asks = [
            partial(self._handle.score.remote, recipe.model_dump_json(by_alias=True), split)
            for recipe in recipes
        ]
        responses = [ask() for ask in asks]
        for ask, response in zip(asks, responses, strict=True):
            yield self.retried(ask, response, timeout_s=self._placed.timeout_s)


def candidates_at_once(spec: StudySpec) -> int:
    """Return how many candidates a replica takes: a second one, if judges work elsewhere.

    The engine answers one candidate at a time; while the judges' service looks at its answers,
    it answers the next.
    """
    return 2 if spec.served_judges else 1
