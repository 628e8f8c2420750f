"""Generation on Ray Serve: replicas that hold one model of the pool at a time."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve

from safemerge.config.generation import GenerateSpec
from safemerge.config.judge import ModelJudge
from safemerge.distributed.judge import bound_judges, judge_maker
from safemerge.distributed.serving import (
    HEALTH_CHECK_EVERY_S,
    actor_options,
    check_resources,
    placed,
    run_application,
    unwrapped,
)
from safemerge.engines.core_claim import CoreClaim
from safemerge.engines.launch import start_engine
from safemerge.errors import EngineError
from safemerge.generation.pool import ModelPool, outcomes
from safemerge.generation.record import Ask, Outcome, TaskKind
from safemerge.records import Response
from safemerge.scoring.judge import Judge

DEPLOYMENT = "ModelPool"
BATCHES_AT_ONCE = 2
"""Batches of a replica: one is judged while the engine answers the other."""


class GeneratorReplica:
    """One replica: an engine, the pool's models one after the other, and the judge.

    What a model answers to an unsafe question leaves this process only towards the judge, unless
    it is a refusal.

    Args:
        spec: JSON of a generation whose models are resolved to paths.
        judges: Handles of the judges that are deployments; see `bound_judges`.
    """

    def __init__(self, spec: str, judges: Mapping[str, Any] | None = None) -> None:
        self._spec = GenerateSpec.model_validate_json(spec)
        evaluator = self._spec.evaluator
        binds = evaluator.engine == "vllm" and evaluator.gpus_per_replica == 0
        self._claim = CoreClaim(max(1, int(evaluator.cpus_per_replica))) if binds else None
        cpu_ids = self._claim.cpu_ids if self._claim is not None else None
        self._pool = ModelPool(
            self._spec.models,
            start_engine=lambda models: start_engine(
                models, evaluator, cpu_ids=cpu_ids, in_process=True
            ),
            max_model_len=evaluator.max_model_len,
            chat=self._spec.chat,
        )
        self._judge: Judge | None = None
        if self._spec.safety is not None:
            make = judge_maker(judges or {}, self._spec.judge_service)
            self._judge = make(self._spec.safety.judge)
        self._engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._judge_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judging")
        self._busy_since: float | None = None

    async def work(self, kind: TaskKind, model: str, asks: list[Ask]) -> list[Outcome]:
        """Ask a model of the pool, and give what is kept.

        Raises:
            EngineError: If the engine failed; it is started anew before the next batch.
            ScoringError: If the judge as a whole cannot work.
        """
        loop = asyncio.get_running_loop()
        replies = await loop.run_in_executor(self._engine_thread, self._reply, model, asks)
        return await loop.run_in_executor(
            self._judge_thread, lambda: outcomes(kind, asks, replies, judge=self._judge)
        )

    def _reply(self, model: str, asks: list[Ask]) -> list[Response | None]:
        self._busy_since = time.monotonic()
        try:
            return self._pool.reply(model, asks)
        finally:
            self._busy_since = None

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica.

        Raises:
            EngineError: If a batch takes longer than the timeout.
        """
        since, limit = self._busy_since, self._spec.evaluator.timeout_s
        if since is not None and time.monotonic() - since > limit:
            raise EngineError(f"generate: a batch took longer than {limit:g} s.")

    def __del__(self) -> None:
        """Serve calls this on a graceful shutdown: leave no engine process behind."""
        for name in ("_engine_thread", "_judge_thread"):
            if getattr(self, name, None) is not None:
                getattr(self, name).shutdown(wait=False, cancel_futures=True)
        if getattr(self, "_pool", None) is not None:
            self._pool.close()
        if getattr(self, "_claim", None) is not None and self._claim is not None:
            self._claim.release()


class Generator:
    """A running pool with its judge, one application; a context manager that ends it.

    Args:
        spec: Its models resolved to paths.
        app: Name of the Serve application.

    Raises:
        PreflightError: If the cluster has no room for the least replicas.
        EngineError: If no replica comes up.
    """

    def __init__(self, spec: GenerateSpec, *, app: str) -> None:
        self._app = app
        service, evaluator = spec.judge_service, placed(spec.evaluator)
        self._evaluator = evaluator
        spec = spec.model_copy(update={"evaluator": evaluator})
        judges, replica = served_judges(spec), evaluator.replica_needs
        least, num = service.min_replicas, evaluator.min_replicas
        needs = [
            ("models", replica["CPU"] * num, replica["GPU"] * num),
            *(
                (
                    f"judge '{judge.name}'",
                    service.cpus_per_replica * least,
                    service.gpus_per_replica * least,
                )
                for judge in judges
            ),
        ]
        check_resources(needs)
        deployment = serve.deployment(
            name=DEPLOYMENT,
            max_ongoing_requests=BATCHES_AT_ONCE,
            ray_actor_options=actor_options(evaluator),
            autoscaling_config={
                "min_replicas": evaluator.min_replicas,
                "max_replicas": evaluator.max_replicas,
                "target_ongoing_requests": BATCHES_AT_ONCE,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            },
            health_check_period_s=HEALTH_CHECK_EVERY_S,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=30,
        )(GeneratorReplica)
        bound = (bound_judges(judges, service),) if judges else ()
        self._handle = run_application(
            deployment.bind(spec.model_dump_json(by_alias=True), *bound), app=app, what="generate"
        )

    def work(
        self, kind: TaskKind, model: str, batches: Sequence[Sequence[Ask]]
    ) -> Iterator[list[Outcome]]:
        """Yield the outcomes of batches in order; see `safemerge.generation.pipeline.Work`.

        As many batches are under way as the replicas take. One whose replica crashed is tried
        again as often as `evaluator.num_retries` says.

        Raises:
            EngineError: If a batch failed for good.
            UserError: If a prompt does not suit a model's chat template.
        """
        under_way: deque[tuple[list[Ask], Any]] = deque()
        most = self._evaluator.max_replicas * BATCHES_AT_ONCE
        waiting = deque([list(batch) for batch in batches])
        while waiting or under_way:
            while waiting and len(under_way) < most:
                batch = waiting.popleft()
                under_way.append((batch, self._handle.work.remote(kind, model, batch)))
            batch, response = under_way.popleft()
            yield self._patient(kind, model, batch, response)

    def _patient(
        self, kind: TaskKind, model: str, batch: list[Ask], response: Any
    ) -> list[Outcome]:
        # Twice: a batch may wait for the one before it.
        limit = 2 * self._evaluator.timeout_s
        found: list[Outcome]
        for _ in range(self._evaluator.num_retries):
            try:
                found = unwrapped(response, timeout_s=limit, what="generate")
            except EngineError:
                response = self._handle.work.remote(kind, model, batch)
            else:
                return found
        found = unwrapped(response, timeout_s=limit, what="generate")
        return found

    def close(self) -> None:
        """Shut the application down and wait until its replicas are gone."""
        serve.delete(self._app)

    def __enter__(self) -> Generator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def served_judges(spec: GenerateSpec) -> list[ModelJudge]:
    """Return the judge, if it is a deployment of its own."""
    judge = spec.safety.judge if spec.safety is not None else None
    if isinstance(judge, ModelJudge) and judge.placement == "service":
        return [judge]
    return []
