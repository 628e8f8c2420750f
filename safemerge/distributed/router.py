"""How a client finds the replica that is free.

Its process imports neither torch nor the search; see `safemerge.distributed.trainable`.
"""

from __future__ import annotations

import logging
import random
from functools import cache
from typing import TYPE_CHECKING, Any

from ray.serve._private.request_router.pow_2_router import PowerOfTwoChoicesRequestRouter
from ray.serve.config import RequestRouterConfig

if TYPE_CHECKING:
    from ray.serve.request_router import RunningReplica

logger = logging.getLogger(__name__)

ASKED_AT_ONCE = 32
"""Replicas that a waiting request asks at a time whether they are free."""

ASKED_EVERY_S = 0.1
"""How often it asks again at most, after shorter waits in the beginning."""


class FreeReplicaRouter(PowerOfTwoChoicesRequestRouter):
    """Asks many replicas whether they are free, where Serve's own asks two.

    A replica takes one candidate, and all but one of many are busy: of two at random, asked twice
    a second, neither is the free one for as long as a candidate takes. What is known of a replica
    is asked only where it is thought to be busy.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: Any = None
    ) -> list[list[RunningReplica]]:
        """Return replicas that are asked together; a free one with the least to do is taken.

        Args:
            candidate_replicas: All that run.
            pending_request: The request; all are alike.
        """
        asked = min(ASKED_AT_ONCE, len(candidate_replicas))
        return [random.sample(candidate_replicas, asked)]


def routing() -> RequestRouterConfig:
    """Return how requests to replicas that take one at a time are routed.

    Serve asks `FreeReplicaRouter.choose_replicas`, which is none of its public methods. Where a
    version of Ray has it no more, Serve's own choice is taken: slower to find a free replica.
    """
    _check_serve_asks()
    return RequestRouterConfig(
        request_router_class=f"{__name__}.{FreeReplicaRouter.__name__}",
        max_backoff_s=ASKED_EVERY_S,
    )


@cache
def _check_serve_asks() -> None:
    """Say once if Serve no longer asks our router which replicas to try."""
    if not hasattr(PowerOfTwoChoicesRequestRouter, "choose_replicas"):
        import ray

        logger.warning(
            "Ray Serve %s does not ask which replicas to try (choose_replicas): with many "
            "replicas, free ones are found late. Use a version that safemerge was tested with.",
            ray.__version__,
        )
