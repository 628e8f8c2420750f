"""A stage's metrics by step: JSON lines, and TensorBoard events where a writer is installed."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from safemerge.files import replace_file

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
    """Writes what every step saw; a resumed stage appends to the same files.

    Steps after `done` are dropped: a killed stage takes them again, from its last checkpoint on.

    Args:
        folder: Where the files go; must exist.
        done: Steps that the stage has behind it, 0 at its start.
    """

    def __init__(self, folder: Path, *, done: int = 0) -> None:
        self._path = folder / LOG_FILE
        self._cut(done)
        self._events: Any = None
        if importlib.util.find_spec("tensorboardX") is not None:
            writer = importlib.import_module("tensorboardX").SummaryWriter
            self._events = writer(str(folder / EVENTS_FOLDER), purge_step=done + 1)

    def _cut(self, done: int) -> None:
        """Keep the lines up to a step; the file is replaced, so that who follows it notices."""
        if not self._path.exists():
            return
        whole = self._path.read_bytes()
        lines = whole.splitlines(keepends=True)
        kept = [
            line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= done
        ]
        if kept != lines:
            replace_file(self._path, b"".join(kept))

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


class FollowedLog:
    """Reads what another process adds to a log, also one that it cuts when it resumes.

    Args:
        folder: Where the log is, or will be. Lines that are there already do not count as new.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._known = b""
        self._file: int | None = None
        self.new()

    def new(self) -> list[dict[str, Any]]:
        """Return the values of the steps whose lines were finished since the last call."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file:
                self._known = _common_lines(self._known, file.read())
                self._file = number
            file.seek(len(self._known))
            content = file.read()
        content = content[: content.rfind(b"\n") + 1]
        self._known += content
        return [json.loads(line) for line in content.splitlines()]


def _common_lines(first: bytes, second: bytes) -> bytes:
    """Return the finished lines that both begin with."""
    pairs = zip(first.splitlines(keepends=True), second.splitlines(keepends=True), strict=False)
    return b"".join(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
