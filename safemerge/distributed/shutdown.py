"""How replicas end: drained where somebody waits for an answer, and at once where nobody does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import ray
from ray import serve
from ray.serve import context
from ray.serve._private.constants import SERVE_NAMESPACE
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ReplicaDetails, ServeInstanceDetails

DRAINED_AFTER_S = 30.0
"""How much longer than a request may take a replica that is scaled down has to end."""

CLOSED_WITHIN_S = 30.0
"""How long an application that ends waits for its requests; then its replicas are killed."""

CLOSED_SOON_S = 1.0
"""The same where seconds are left, or nobody waits for the answers."""

LOOK_EVERY_S = 0.2

DISMISS_EVERY_S = 10.0


def end_application(app: str, *, within_s: float = CLOSED_WITHIN_S) -> None:
    """End an application and wait until its replicas are gone.

    A replica that is scaled down may take as long as a candidate; one whose application ends may
    not, for nobody waits for the answer.

    Args:
        app: Its name.
        within_s: How long requests that are being answered are waited for.
    """
    serve.delete(app, _blocking=False)
    deadline = time.monotonic() + within_s
    while app in serve.status().applications:
        dismiss(app)
        if time.monotonic() >= deadline:
            for replica in _replicas(app):
                _kill(replica)
            serve.delete(app)
            return
        time.sleep(LOOK_EVERY_S)


def dismiss(app: str) -> None:
    """Kill the replicas of an application that are to stop and were never placed.

    Serve asks them to end, and waits as long as for one that answers a candidate; until then they
    ask the cluster's autoscaler for a node that nobody needs.
    """
    for replica in _replicas(app):
        if replica.state == "STOPPING" and replica.node_id is None:
            _kill(replica)


@contextmanager
def dismissing(app: str) -> Iterator[None]:
    """Do so every few seconds, for the length of a block."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(DISMISS_EVERY_S):
            # A controller that starts again answers the next time.
            with suppress(ray.exceptions.RayError, RayServeException):
                dismiss(app)

    thread = threading.Thread(target=look, name="safemerge-dismissal", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _replicas(app: str) -> list[ReplicaDetails]:
    client = context._get_global_client()
    details = ServeInstanceDetails(**client.get_serve_details())
    found = details.applications.get(app)
    if found is None:
        return []
    return [it for deployment in found.deployments.values() for it in deployment.replicas]


def _kill(replica: ReplicaDetails) -> None:
    if replica.actor_name is not None:
        with suppress(ValueError):  # gone by now
            ray.kill(ray.get_actor(replica.actor_name, namespace=SERVE_NAMESPACE))
