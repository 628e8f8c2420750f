"""Generation on Ray Serve: replicas that hold one model of the pool at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from safemerge.config.judge import ModelJudge
from safemerge.distributed.judge import bound_judges, judge_maker
from safemerge.distributed.serving import Application, EngineReplica, placed
from safemerge.engines.launch import start_engine
from safemerge.generation.pool import ModelPool, outcomes
from safemerge.generation.record import Ask, Outcome, TaskKind
from safemerge.generation.spec import GenerateSpec
from safemerge.records import Response
from safemerge.scoring.judge import Judge

DEPLOYMENT = "ModelPool"
BATCHES_AT_ONCE = 2
"""Batches of a replica: one is judged while the engine answers the other."""


class GeneratorReplica(EngineReplica):
    """One replica: an engine, the pool's models one after the other, and the judge.

    What a model answers to an unsafe question leaves this process only towards the judge, unless
    it is a refusal.

    Args:
        spec: JSON of a generation whose models are resolved to paths.
        judges: Handles of the judges that are deployments; see `bound_judges`.
    """

    def __init__(self, spec: str, judges: Mapping[str, Any] | None = None) -> None:
        declared = GenerateSpec.model_validate_json(spec)
        evaluator = declared.evaluator
        super().__init__(evaluator, what="generate", request="a batch")
        self._pool = ModelPool(
            declared.models,
            start_engine=lambda models: start_engine(
                models, evaluator, cpu_ids=self.cpu_ids, in_process=True
            ),
            max_model_len=evaluator.max_model_len,
            chat=declared.chat,
        )
        self._judge: Judge | None = None
        if declared.safety is not None:
            make = judge_maker(judges or {}, declared.judge_service)
            self._judge = make(declared.safety.judge)

    async def work(self, kind: TaskKind, model: str, asks: list[Ask]) -> list[Outcome]:
        """Ask a model of the pool, and give what is kept.

        Raises:
            EngineError: If the engine failed; it is started anew before the next batch.
            ScoringError: If the judge as a whole cannot work.
        """
        loop = asyncio.get_running_loop()
        replies = await loop.run_in_executor(self._thread, self._reply, model, asks)
        return await loop.run_in_executor(
            self._beside, lambda: outcomes(kind, asks, replies, judge=self._judge)
        )

    def _reply(self, model: str, asks: list[Ask]) -> list[Response | None]:
        with self.busy():
            return self._pool.reply(model, asks)

    def close_engine(self) -> None:
        """End the pool's engine."""
        if hasattr(self, "_pool"):
            self._pool.close()


class Generator(Application):
    """A running pool with its judge.

    Args:
        spec: Its models resolved to paths.
        app: Name of the Serve application.

    Raises:
        PreflightError, EngineError: See `Application`.
    """

    def __init__(self, spec: GenerateSpec, *, app: str) -> None:
        evaluator = placed(spec.evaluator)
        spec = spec.model_copy(update={"evaluator": evaluator})
        judges, service = served_judges(spec), spec.judge_service
        super().__init__(
            GeneratorReplica,
            spec.model_dump_json(by_alias=True),
            *([bound_judges(judges, service)] if judges else []),
            app=app,
            deployment=DEPLOYMENT,
            what="generate",
            evaluator=evaluator,
            at_once=BATCHES_AT_ONCE,
            judges=judges,
            service=service,
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
        under_way: deque[tuple[Callable[[], Any], Any]] = deque()
        most = self._placed.max_replicas * BATCHES_AT_ONCE
        # Twice: a batch may wait for the one before it.
        limit = 2 * self._placed.timeout_s
        waiting = deque([list(batch) for batch in batches])
        while waiting or under_way:
            while waiting and len(under_way) < most:
                ask = partial(self._handle.work.remote, kind, model, waiting.popleft())
                under_way.append((ask, ask()))
            yield self.retried(*under_way.popleft(), timeout_s=limit)


def served_judges(spec: GenerateSpec) -> list[ModelJudge]:
    """Return the judge, if it is a deployment of its own."""
    judge = spec.safety.judge if spec.safety is not None else None
    if isinstance(judge, ModelJudge) and judge.placement == "service":
        return [judge]
    return []
