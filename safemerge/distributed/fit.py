"""Ray Train runs side by side, each waited for in a thread of the command's own process."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path

import ray.train
from ray.exceptions import RayActorError
from ray.train.torch import TorchTrainer

from safemerge.config.stage import WorkersSpec
from safemerge.errors import SafemergeError

logger = logging.getLogger(__name__)

WORKER_LOSSES = 2
"""How often a run resumes after its workers' processes died: killed, or out of memory."""


def start_fit(
    worker: Callable[[dict[str, str]], None],
    config: Mapping[str, str],
    workers: WorkersSpec,
    *,
    name: str,
    storage: Path,
    num_to_keep: int | None = None,
) -> Future[None]:
    """Start a Ray Train run and return at once.

    The run's controller is an actor beside this process; a task around ``fit()`` would only
    be one more process that imports torch. After a worker's process died, the run resumes from
    its newest checkpoint, `WORKER_LOSSES` times at most. What a worker raises ends it: another
    try would raise the same.

    Args:
        worker: What every worker runs.
        config: What it is called with.
        workers: Their number and resources.
        name: Name of the run; the same name and storage make Ray Train continue from the
            newest checkpoint.
        storage: Folder of the run.
        num_to_keep: Checkpoints to keep; all of them if None.

    Returns:
        Done when the run is; holds Ray Train's error if it failed.
    """
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    found: Future[None] = Future()

    def new_trainer() -> TorchTrainer:
        return TorchTrainer(
            worker,
            train_loop_config=dict(config),
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers.num_workers,
                use_gpu=workers.gpus_per_worker > 0,
                resources_per_worker=resources,
            ),
            run_config=ray.train.RunConfig(
                name=name,
                storage_path=str(storage),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=num_to_keep),
            ),
        )

    def fit() -> None:
        for losses_left in reversed(range(WORKER_LOSSES + 1)):
            try:
                trainer.fit() if losses_left == WORKER_LOSSES else new_trainer().fit()
            except BaseException as error:  # noqa: BLE001 - handed to whoever waits
                if losses_left and _lost_worker(error):
                    logger.warning("%s: a worker was lost; training resumes", storage)
                    continue
                found.set_exception(error)
            else:
                found.set_result(None)
            return

    trainer = new_trainer()  # what is wrong with it is raised here

    # A daemon, so that an interrupted command ends though its run is still blocked in Ray.
    threading.Thread(target=fit, name=f"fit-{name}", daemon=True).start()
    return found


def _lost_worker(error: BaseException) -> bool:
    """Whether a worker's process died, whatever the others then raised."""
    failures = getattr(error, "worker_failures", {})
    # Ray Train hears of it when it next asks the worker how far it is.
    causes = [getattr(found, "health_check_failure", found) for found in failures.values()]
    return any(isinstance(cause, RayActorError) for cause in causes)


def cause_of(error: BaseException) -> str:
    """Return the innermost safemerge message, else the last line of Ray's report."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SafemergeError) and not isinstance(seen, ray.exceptions.RayError):
            return str(seen)
        seen = getattr(seen, "cause", None) or seen.__cause__
    if _lost_worker(error):
        return "a worker's process died again and again: killed, or out of memory"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if "Error" in line), lines[-1])
    return re.sub(r"^safemerge\.errors\.\w+: ", "", text)
