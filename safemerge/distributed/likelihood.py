"""Losses of candidates on Ray Serve: replicas that own an engine each and score given answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.schema import LoggingConfig

from safemerge.config.models import models_recipe
from safemerge.config.optimize import OptimizeSpec
from safemerge.config.recipe import MergeRecipe
from safemerge.distributed.fit import cause_of
from safemerge.distributed.serving import actor_options, placed
from safemerge.engines.chat import ChatFormat
from safemerge.engines.core_claim import CoreClaim
from safemerge.engines.engine import Continuation, Engine, Likelihood
from safemerge.errors import EngineError, MergeError
from safemerge.training.objective import PairLosses
from safemerge.training.optimize import UNSCORABLE
from safemerge.training.pairs import PairSet, load_pairs
from safemerge.weights.hub import refs_on_this_node

DEPLOYMENT = "PairEvaluator"


class PairReplica:
    """One replica: an engine, both sets tokenised, one recipe at a time.

    Args:
        spec: JSON of an optimisation whose checkpoints are resolved to paths.
    """

    def __init__(self, spec: str) -> None:
        declared = OptimizeSpec.model_validate_json(spec)
        self._spec = declared.with_checkpoints(refs_on_this_node(declared.checkpoints))
        pairs = load_pairs(self._spec, ChatFormat(str(self._spec.base.path)))
        self._sets = pairs.sets
        self._asked = [continuations(item) for item in pairs.sets]
        evaluator = self._spec.evaluator
        assert evaluator is not None, "replicas are for a declared evaluator"
        # Only vLLM binds its threads.
        binds = evaluator.engine == "vllm" and evaluator.gpus_per_replica == 0
        self._claim = CoreClaim(max(1, int(evaluator.cpus_per_replica))) if binds else None
        self._engine: Engine | None = self._start_engine()

    def _start_engine(self) -> Engine:
        evaluator = self._spec.evaluator
        assert evaluator is not None, "replicas are for a declared evaluator"
        models = models_recipe(self._spec.base, self._spec.experts, dtype=self._spec.dtype)
        if evaluator.engine == "transformers":
            from safemerge.engines.transformers_engine import TransformersEngine

            return TransformersEngine(models, evaluator)
        from safemerge.engines.vllm_engine import VllmEngine

        cpu_ids = self._claim.cpu_ids if self._claim is not None else None
        return VllmEngine(models, evaluator, cpu_ids=cpu_ids, in_process=True)

    def losses(self, recipe: str) -> PairLosses:
        """Merge a recipe and score both sets.

        Args:
            recipe: JSON of a resolved recipe.

        Returns:
            Cross-entropies; infinite if the recipe cannot be merged or scored.

        Raises:
            EngineError: If the engine failed; it is rebuilt before the next recipe.
        """
        try:
            if self._engine is None:
                self._engine = self._start_engine()
            candidate = MergeRecipe.model_validate_json(recipe)
            self._engine.load(candidate)
            found = self._engine.loglikelihoods([item for part in self._asked for item in part])
        except MergeError:
            return UNSCORABLE
        except EngineError:
            self._drop_engine()
            raise
        if any(likelihood.candidate != candidate.digest for likelihood in found):
            self._drop_engine()
            raise EngineError(
                f"evaluator: texts must be scored by candidate {candidate.digest}; got another's "
                "log-probabilities."
            )
        first = len(self._asked[0])
        losses = PairLosses(
            mean_cross_entropy(self._sets[0], found[:first]),
            mean_cross_entropy(self._sets[1], found[first:]),
        )
        return losses if all(map(math.isfinite, losses)) else UNSCORABLE

    def _drop_engine(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __del__(self) -> None:
        """Serve calls this on a graceful shutdown: leave no engine process behind."""
        if getattr(self, "_engine", None) is not None:
            self._drop_engine()
        if getattr(self, "_claim", None) is not None and self._claim is not None:
            self._claim.release()


def continuations(item: PairSet) -> list[Continuation]:
    """Return the answers of a set's rows, each after its prompt."""
    return [
        Continuation(
            sample_id=str(index),
            context_ids=row.sample.ids[: row.sample.num_prompt],
            continuation_ids=row.sample.ids[row.sample.num_prompt :],
        )
        for index, row in enumerate(item.rows)
    ]


def mean_cross_entropy(item: PairSet, found: Sequence[Likelihood]) -> float:
    """Return the mean over a set's rows of minus the log-probability a token, in nats.

    Args:
        item: The set.
        found: Its rows' likelihoods, in order.
    """
    return math.fsum(
        -row.share * likelihood.logprob / likelihood.num_tokens
        for row, likelihood in zip(item.rows, found, strict=True)
    )


class PairEvaluator:
    """A running application of such replicas; a context manager that shuts it down.

    Args:
        spec: An optimisation with an evaluator, checkpoints resolved to paths.

    Raises:
        EngineError: If no replica comes up.
    """

    def __init__(self, spec: OptimizeSpec) -> None:
        assert spec.evaluator is not None, "declared by the caller's spec"
        evaluator = placed(spec.evaluator)
        spec = spec.model_copy(update={"evaluator": evaluator})
        self._evaluator, self._app = evaluator, f"safemerge-optimize-{spec.name}"
        # Handles only: no HTTP proxy, so no port that could be taken.
        quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        deployment = serve.deployment(
            name=DEPLOYMENT,
            max_ongoing_requests=1,
            ray_actor_options=actor_options(evaluator),
            autoscaling_config={
                "min_replicas": evaluator.min_replicas,
                "max_replicas": evaluator.max_replicas,
                "target_ongoing_requests": 1,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            },
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=30,
        )(PairReplica)
        try:
            self._handle = serve.run(
                deployment.bind(spec.model_dump_json(by_alias=True)),
                name=self._app,
                route_prefix=None,
                blocking=False,
                logging_config=quiet,
            )
        except (RuntimeError, ray.exceptions.RayError) as error:
            found = serve.status().applications.get(self._app)
            told = found.deployments[DEPLOYMENT].message if found is not None else ""
            reason = cause_of(RuntimeError(told)) if told else cause_of(error)
            self.close()
            raise EngineError(f"evaluator: no replica came up; got: {reason}") from error
        except KeyboardInterrupt:
            self.close()
            raise

    def score(self, recipes: Sequence[MergeRecipe]) -> list[PairLosses]:
        """Score recipes side by side over the replicas.

        A recipe whose replica crashed is tried again as often as the evaluator allows.

        Raises:
            EngineError: If an engine failed as often, or there is no answer in time.
        """
        pending = [self._ask(recipe) for recipe in recipes]
        limit = self._evaluator.timeout_s * len(recipes)
        return [
            self._patient(recipe, response, limit)
            for recipe, response in zip(recipes, pending, strict=True)
        ]

    def _ask(self, recipe: MergeRecipe) -> Any:
        return self._handle.losses.remote(recipe.model_dump_json(by_alias=True))

    def _patient(self, recipe: MergeRecipe, response: Any, limit: float) -> PairLosses:
        for _ in range(self._evaluator.num_retries):
            try:
                return _answer(response, limit)
            except EngineError:
                response = self._ask(recipe)
        return _answer(response, limit)

    def close(self) -> None:
        """Shut the application down and wait until its replicas are gone."""
        serve.delete(self._app)

    def __enter__(self) -> PairEvaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(response: Any, limit: float) -> PairLosses:
    try:
        return PairLosses(*response.result(timeout_s=limit))
    except TimeoutError:
        raise EngineError(f"evaluator: no answer within {limit:g} s.") from None
    except ray.exceptions.RayError as error:
        raise EngineError(f"evaluator: {cause_of(error)}") from error
