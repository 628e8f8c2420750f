"""Joining a running Ray cluster, or starting a local one that ends with the command."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from safemerge.errors import PreflightError

OBJECT_STORE_BYTES = 200 * 1024**2
"""Object store of a local cluster: only recipes and results travel, never weights."""


@contextmanager
def ray_cluster(*, num_cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray for the length of a block.

    Joins the cluster that ``RAY_ADDRESS`` names (as inside ``ray job submit``), else starts a
    local one. What this call started, it stops; a cluster that ran before is left running.

    Args:
        num_cpus: CPUs of a local cluster; all of them if left out.

    Raises:
        PreflightError: If Ray is not installed, or the named cluster does not answer.
    """
    for name in ("ray", "ray.serve", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        import ray
    except ImportError as error:
        raise PreflightError(
            f"cluster: ray must be installed; got: {error}. Install safemerge[cpu] or [gpu]."
        ) from None
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        else:
            # No machine of a local cluster is ever drained: one process less for each stage.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # noqa: BLE001
        # A border: Ray raises a bare Exception where its processes start too slowly.
        where = f"RAY_ADDRESS={address}" if address else "local Ray"
        advice = "Start the cluster, or unset RAY_ADDRESS to run on this machine alone."
        if not address:
            advice = "Try again when fewer programs hold the machine's cores and memory."
        told = (str(error) or repr(error)).splitlines()[0].rstrip(".")
        raise PreflightError(f"cluster: {where} must answer; got: {told}. {advice}") from None
    try:
        yield
    finally:
        # Serve's handles go on reporting from a thread, and would complain of the lost cluster.
        # NOTE: no serve.shutdown(): it ends the controller under those handles, which complain.
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
        with _uninterrupted():
            ray.shutdown()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C for the seconds in which Ray ends its processes: none may be left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
