"""Joining a running Ray cluster, or starting a local one that ends with the command."""

from __future__ import annotations

import logging
import os
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
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # Ray starts workers at niceness 15: on a busy laptop they would hardly run.
    os.environ.setdefault("RAY_worker_niceness", "0")
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
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        where = f"RAY_ADDRESS={address}" if address else "local Ray"
        raise PreflightError(
            f"cluster: {where} must answer; got: {str(error).splitlines()[0]}. Start the "
            "cluster, or unset RAY_ADDRESS to run on this machine alone."
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
