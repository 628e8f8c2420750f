"""The Ray Serve evaluator: replicas that own an engine each and score one recipe at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ray import serve

from safemerge.config.models import study_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec, StudySpec
from safemerge.data.suite import load_suites
from safemerge.distributed.judge import bound_judges, judge_maker, judges_until
from safemerge.distributed.rung import RungPairs
from safemerge.distributed.serving import (
    HEALTH_CHECK_EVERY_S,
    actor_options,
    check_resources,
    placed,
    run_application,
    unwrapped,
)
from safemerge.engines.chat import ChatFormat
from safemerge.engines.core_claim import CoreClaim
from safemerge.engines.engine import Engine, TokenizedPrompt
from safemerge.engines.launch import start_engine
from safemerge.errors import EngineError, SafemergeError
from safemerge.evaluation import (
    AnsweredSplit,
    answer_candidate,
    prepare_split,
    score_candidate,
)
from safemerge.merge.candidate_tokenizer import candidate_tokenizer
from safemerge.records import CandidateResult, RungResult, Split
from safemerge.weights.hub import refs_on_this_node

_Answer = TypeVar("_Answer")

DEPLOYMENT = "CandidateEvaluator"
CANARY_PROMPT = "Say hello."
CANARY_EVERY_S = 30.0
"""An idle engine is asked this often whether it still answers."""
CANARY_TIMEOUT_S = 120.0
JUDGED_WITHIN = 0.8
"""Share of a candidate's time after which answers that no judge has judged are unscored: the
candidate then ends with that reason, and not with its own time-out."""


class EvaluatorReplica:
    """One replica: an engine, the study's prompts tokenised, one candidate at a time.

    Args:
        study: JSON of a study whose checkpoints are resolved to paths.
        judges: Handles of the judges that are deployments; see `bound_judges`.
    """

    def __init__(self, study: str, judges: Mapping[str, Any] | None = None) -> None:
        spec = StudySpec.model_validate_json(study)
        self._spec = spec.with_checkpoints(refs_on_this_node(spec.all_checkpoints))
        self._models = study_models(self._spec)
        self._chat = ChatFormat(candidate_tokenizer(self._models))
        evaluator = self._spec.evaluator
        self._prepared = {
            split: prepare_split(
                suites,
                self._chat,
                max_model_len=evaluator.max_model_len,
                make_judge=judge_maker(judges or {}, self._spec.judge_service),
            )
            for split, suites in load_suites(self._spec).items()
        }
        self._pairs: RungPairs | None = None
        if (rung := self._spec.rung) is not None:
            self._pairs = RungPairs(
                rung, self._chat, max_model_len=evaluator.max_model_len, seed=self._spec.seed
            )
        # Only vLLM binds its threads; a claim of the transformers engine would just keep cores
        # from others.
        binds = evaluator.engine == "vllm" and evaluator.gpus_per_replica == 0
        self._claim = CoreClaim(max(1, int(evaluator.cpus_per_replica))) if binds else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        # Beside the engine's thread: judges elsewhere are waited for while it answers the next,
        # and that one's answers need not wait for them either.
        self._scoring = ThreadPoolExecutor(max_workers=2, thread_name_prefix="scoring")
        self._busy_since: float | None = None
        self._last_answer = 0.0
        self._engine: Engine | None = self._start_engine()
        self._name = serve.get_replica_context().replica_id.unique_id

    def _start_engine(self) -> Engine:
        cpu_ids = self._claim.cpu_ids if self._claim is not None else None
        return start_engine(self._models, self._spec.evaluator, cpu_ids=cpu_ids, in_process=True)

    async def score(self, recipe: str, split: Split) -> CandidateResult:
        """Merge a recipe, answer a split's prompts, score the answers.

        Args:
            recipe: JSON of a resolved recipe.
            split: ``search`` or ``report``.

        Raises:
            EngineError: If the engine failed; it is rebuilt before the next candidate.
            ScoringError: If too many responses are unscored.
        """
        deadline = time.monotonic() + JUDGED_WITHIN * self._spec.evaluator.timeout_s
        loop = asyncio.get_running_loop()
        answered = await loop.run_in_executor(self._thread, self._answer, recipe, split)
        return await loop.run_in_executor(self._scoring, self._score, answered, split, deadline)

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
        pairs = self._pairs
        assert pairs is not None, "asked only in studies with a rung"
        return self._with_engine(
            lambda engine: pairs.screen(
                engine, MergeRecipe.model_validate_json(recipe), replica=self._name
            )
        )

    def _answer(self, recipe: str, split: Split) -> AnsweredSplit:
        return self._with_engine(
            lambda engine: answer_candidate(
                engine, MergeRecipe.model_validate_json(recipe), self._prepared[split]
            )
        )

    def _with_engine(self, ask: Callable[[Engine], _Answer]) -> _Answer:
        """Ask the engine something; one that fails is rebuilt before the next candidate."""
        self._busy_since = time.monotonic()
        try:
            if self._engine is None:
                self._engine = self._start_engine()
            answered = ask(self._engine)
        except SafemergeError as error:
            if isinstance(error, EngineError):
                self._drop_engine()
            raise
        except Exception as error:
            # An engine whose process died raises types of its own; nothing of it is reused.
            self._drop_engine()
            raise EngineError(f"evaluator: the engine failed; got: {error!r}.") from error
        finally:
            self._busy_since = None
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

    def _drop_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica: an engine that can't answer is restarted.

        Raises:
            EngineError: If a candidate takes longer than the study's timeout, or an idle engine
                does not answer the canary prompt.
        """
        busy_since = self._busy_since
        if busy_since is not None:
            if time.monotonic() - busy_since > self._spec.evaluator.timeout_s:
                limit = self._spec.evaluator.timeout_s
                raise EngineError(f"evaluator: a candidate took longer than {limit:g} s.")
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

    def __del__(self) -> None:
        """Serve calls this on a graceful shutdown: leave no engine process behind."""
        for name in ("_thread", "_scoring"):
            if getattr(self, name, None) is not None:
                getattr(self, name).shutdown(wait=False, cancel_futures=True)
        if getattr(self, "_engine", None) is not None:
            self._drop_engine()
        if getattr(self, "_claim", None) is not None and self._claim is not None:
            self._claim.release()


class Evaluator:
    """A running evaluator with its judges, one application; a context manager that ends it.

    Args:
        spec: Study whose checkpoints are resolved to paths.
        app: Name of the Serve application.

    Raises:
        PreflightError: If the cluster has no room for the least replicas.
        EngineError: If no replica comes up.
    """

    def __init__(self, spec: StudySpec, *, app: str) -> None:
        self._app = app
        self._spec = spec
        evaluator = placed(spec.evaluator)
        service, judges = spec.judge_service, spec.served_judges
        check_resources(least_needs(spec, evaluator))
        ongoing = candidates_at_once(spec)
        deployment = serve.deployment(
            name=DEPLOYMENT,
            max_ongoing_requests=ongoing,
            ray_actor_options=actor_options(evaluator),
            autoscaling_config={
                "min_replicas": evaluator.min_replicas,
                "max_replicas": evaluator.max_replicas,
                "target_ongoing_requests": ongoing,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            },
            health_check_period_s=HEALTH_CHECK_EVERY_S,
            health_check_timeout_s=CANARY_TIMEOUT_S + 10,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=30,
        )(EvaluatorReplica)
        study = spec.model_copy(update={"evaluator": evaluator}).model_dump_json(by_alias=True)
        bound = (bound_judges(judges, service),) if judges else ()
        self._handle = run_application(deployment.bind(study, *bound), app=app, what="evaluator")

    def score(self, recipe: MergeRecipe, split: Split) -> CandidateResult:
        """Score one recipe on one split; blocks until a replica has done it."""
        return score_through(self._handle, recipe, split, timeout_s=self._timeout_s())

    def score_all(self, recipes: list[MergeRecipe], split: Split) -> Iterator[CandidateResult]:
        """Score recipes side by side over the replicas; yield each, in the given order.

        A recipe whose replica crashed is tried again as often as the study allows.
        """
        responses = [self._ask(recipe, split) for recipe in recipes]
        deadline = self._timeout_s() * len(recipes)
        for recipe, response in zip(recipes, responses, strict=True):
            yield self._patient(recipe, split, response, timeout_s=deadline)

    def _patient(
        self, recipe: MergeRecipe, split: Split, response: Any, *, timeout_s: float
    ) -> CandidateResult:
        for _ in range(self._spec.evaluator.num_retries):
            try:
                return _result(response, timeout_s=timeout_s)
            except EngineError:
                response = self._ask(recipe, split)
        return _result(response, timeout_s=timeout_s)

    def _ask(self, recipe: MergeRecipe, split: Split) -> Any:
        return self._handle.score.remote(recipe.model_dump_json(by_alias=True), split)

    def _timeout_s(self) -> float:
        return self._spec.evaluator.timeout_s

    def close(self) -> None:
        """Shut the application down and wait until its replicas are gone."""
        serve.delete(self._app)

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def score_through(
    handle: Any, recipe: MergeRecipe, split: Split, *, timeout_s: float
) -> CandidateResult:
    """Score a recipe through a deployment handle.

    Raises:
        EngineError, ScoringError: What the replica raised, without Ray's wrapping.
    """
    response = handle.score.remote(recipe.model_dump_json(by_alias=True), split)
    return _result(response, timeout_s=timeout_s)


def screen_through(
    handle: Any, recipe: MergeRecipe, *, timeout_s: float
) -> RungResult | CandidateResult:
    """Take a recipe's losses on the low rung through a deployment handle.

    Raises:
        EngineError: What the replica raised, without Ray's wrapping.
    """
    response = handle.screen.remote(recipe.model_dump_json(by_alias=True))
    found: RungResult | CandidateResult = unwrapped(
        response, timeout_s=timeout_s, what="evaluator"
    )
    return found


def _result(response: Any, *, timeout_s: float) -> CandidateResult:
    result: CandidateResult = unwrapped(response, timeout_s=timeout_s, what="evaluator")
    return result


def candidates_at_once(spec: StudySpec) -> int:
    """Return how many candidates a replica takes: a second one, if judges work elsewhere.

    The engine answers one candidate at a time; while the judges' service looks at its answers,
    it answers the next.
    """
    return 2 if spec.served_judges else 1


def least_needs(spec: StudySpec, evaluator: EvaluatorSpec) -> list[tuple[str, float, float]]:
    """Return what a study's least replicas take: each deployment with its CPUs and GPUs.

    Args:
        spec: The study, for its judges.
        evaluator: Its evaluator, with the GPUs that replicas take.
    """
    needs, service = evaluator.replica_needs, spec.judge_service
    num, least = evaluator.min_replicas, service.min_replicas
    cpus, gpus = service.cpus_per_replica * least, service.gpus_per_replica * least
    judges = [(f"judge '{judge.name}'", cpus, gpus) for judge in spec.served_judges]
    return [("evaluator", needs["CPU"] * num, needs["GPU"] * num), *judges]
