"""A stage's metrics by step: JSON lines, and TensorBoard events where a writer is installed."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

LOG_FILE = "metrics.jsonl"
"""One line a step, with the values that the step has."""

EVENTS_FOLDER = "tensorboard"
"""Folder for ``tensorboard --logdir``."""


@runtime_checkable
class LoggedStep(Protocol):
    """What one step saw."""

    @property
    def step(self) -> int:
        """1-indexed."""
        ...

    def known(self) -> dict[str, int | float]:
        """Return the values that the step has, by name, ``step`` among them."""
        ...


class MetricsLog:
    """Writes what every step saw; a resumed stage goes on in the same files.

    Args:
        folder: Where the files go; must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._events: Any = None
        if importlib.util.find_spec("tensorboardX") is not None:
            writer = importlib.import_module("tensorboardX").SummaryWriter
            self._events = writer(str(folder / EVENTS_FOLDER))

    def write(self, metrics: LoggedStep) -> None:
        """Append one step."""
        known = metrics.known()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(known) + "\n")
        if self._events is not None:
            for name, value in known.items():
                if name != "step":
                    self._events.add_scalar(name, value, metrics.step)

    def close(self) -> None:
        """Write out what TensorBoard's writer holds back."""
        if self._events is not None:
            self._events.close()
