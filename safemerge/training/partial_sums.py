"""What one worker has summed up so far, in a file: an interrupted gathering resumes from it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from safemerge.training.statistics import Gathering

SHARE_OF_TIME = 0.05
"""Of a gathering's time that saving may take."""

FIRST_SAVE_S = 20.0
"""Seconds until the first save; later ones follow by `SHARE_OF_TIME`."""


class PartialSums:
    """Keeps a gathering's state, one file a worker.

    The order of a worker's rows is fixed and its sums are kept as they are, so a resumed
    gathering gives the same bits as one that was not interrupted. A file is taken only by the same
    share of the rows: with another number of workers gathering starts over.

    Args:
        folder: Where the files lie, of this model, data and settings only; made if missing.
        part: Which model is measured, e.g. ``model`` or ``base``.
        rank: The worker's rank.
        world_size: Number of workers.
    """

    def __init__(self, folder: Path, part: str, *, rank: int, world_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{part}-{rank}-of-{world_size}.pt"
        self._next_save = time.monotonic() + FIRST_SAVE_S

    def restore(self, gathering: Gathering) -> int:
        """Load what was kept, if anything; return how many of the worker's rows it holds."""
        if not self._path.is_file():
            return 0
        state: dict[str, Any] = torch.load(self._path, weights_only=True)
        gathering.load_state_dict(state)
        return gathering.num_rows

    def save(self, gathering: Gathering, *, now: bool = False) -> None:
        """Keep the state, if it is time to or `now`: written beside its place, then renamed."""
        started = time.monotonic()
        if not now and started < self._next_save:
            return
        scratch = self._path.with_suffix(".partial")
        torch.save(gathering.state_dict(), scratch)
        os.replace(scratch, self._path)
        ended = time.monotonic()
        self._next_save = ended + max(FIRST_SAVE_S, (ended - started) / SHARE_OF_TIME)
