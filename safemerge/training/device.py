"""The device that a training process computes on."""

from __future__ import annotations

from typing import Literal

import torch

from safemerge.config.stage import WorkersSpec


def claim_device(workers: WorkersSpec) -> Literal["cuda", "cpu"]:
    """Return a worker's device; on CPU torch takes as many threads as the worker has cores.

    A GPU is taken where the worker was given one and torch sees it.
    """
    if workers.gpus_per_worker and torch.cuda.is_available():
        return "cuda"
    torch.set_num_threads(max(1, int(workers.cpus_per_worker)))
    return "cpu"
