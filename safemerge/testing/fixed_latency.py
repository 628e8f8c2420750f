"""A replica of a fixed latency: what a search costs beside its engines, without torch or a model.

The one module of the test kit that stands on `safemerge.distributed`: what serves, scales and
survives is real, only the engine is not.
"""

from __future__ import annotations

import asyncio
import os
import time

from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.distributed.request import DEPLOYMENT
from safemerge.distributed.serving import Application, EngineReplica
from safemerge.records import CandidateResult, Split
from safemerge.testing.landscapes import SMOOTH


class FixedLatencyReplica(EngineReplica):
    """Takes as long for every candidate, and scores it on the smooth landscape.

    Args:
        evaluator: Replicas and their needs.
        latency_s: Seconds that a candidate takes.
        start_s: Seconds that the replica takes to start, as an engine does.
    """

    def __init__(
        self, evaluator: EvaluatorSpec, *, latency_s: float, start_s: float = 0.0
    ) -> None:
        super().__init__(evaluator, what="replica", request="a candidate")
        self._latency_s = latency_s
        time.sleep(start_s)

    async def score(self, recipe: str, split: Split) -> CandidateResult:
        """Wait, then score a recipe of `landscape_study`; its result names this process."""
        with self.busy():
            await asyncio.sleep(self._latency_s)
        result = SMOOTH.evaluate(MergeRecipe.model_validate_json(recipe), split)
        return result.model_copy(update={"replica": str(os.getpid())})

    def close_engine(self) -> None:
        """There is none."""


def fixed_latency_application(
    evaluator: EvaluatorSpec,
    *,
    app: str,
    latency_s: float,
    start_s: float = 0.0,
    replica: type[FixedLatencyReplica] = FixedLatencyReplica,
) -> Application:
    """Start replicas of a fixed latency as a search's evaluator.

    Args:
        evaluator: Replicas and their needs, placed.
        app: Name of the Serve application.
        latency_s: Seconds that a candidate takes.
        start_s: Seconds that a replica takes to start.
        replica: Their class.

    Returns:
        The application; a context manager that ends it.
    """
    return Application(
        replica,
        app=app,
        deployment=DEPLOYMENT,
        what="fixed-latency evaluator",
        evaluator=evaluator,
        options={"evaluator": evaluator, "latency_s": latency_s, "start_s": start_s},
    )
