"""The folder of a robustness measurement: what was asked, and every finished cell.

``cells.jsonl`` is the truth about what finished; lines are appended under a lock and synced to
disk. A cell is known by the digest of all that its result depends on, so a file whose grid grew
continues the same folder, and cells of other settings are kept and left out.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.errors import RunFolderError, StudyError
from safemerge.files import (
    append_line,
    disk_errors,
    is_stored,
    mend_lines,
    parse_stored,
    read_lines,
    replace_file,
)
from safemerge.provenance import Provenance, current_provenance
from safemerge.records import CandidateResult
from safemerge.robustness.spec import Cell, RobustnessSpec

CELL_FORMAT = 1
"""Version of the folder's layout."""

MEASUREMENT_FILE = "robustness_spec.json"
"""What was asked: marks the folder of a measurement."""

_KEYS_FILE = "grid.json"
"""Keys of the grid's cells, in its order."""


class LossPoint(StrictModel):
    """Loss on held-out harmful rows, along an attack."""

    step: int = Field(ge=0)
    """Optimiser steps done."""
    harmful_loss: float
    """Mean cross-entropy over target tokens, nats."""


class CellRecord(StrictModel):
    """One finished cell: a line of ``cells.jsonl``."""

    key: str
    """Digest of everything that the result depends on."""
    cell: Cell
    state: Literal["COMPLETE", "FAIL"]
    reason: str | None = None
    """Why it failed."""
    result: CandidateResult | None = None
    """Metrics and per-sample scores; None for FAIL."""
    curve: list[LossPoint] = Field(default_factory=list)
    """Harmful loss along the attack, start and end included; empty if not measured."""
    training_losses: list[float] = Field(default_factory=list)
    """Loss of each optimiser step of the attack, nats."""
    cut_rows: list[str] = Field(default_factory=list, exclude_if=lambda given: not given)
    """Sets of the attack with rows that were cut at `max_tokens`, in words."""
    train_s: float = 0.0
    evaluate_s: float = 0.0
    finished_at: str = ""
    """UTC, ISO 8601."""


class MeasurementDocument(StrictModel):
    """What ``robustness_spec.json`` holds."""

    format: int
    config: RobustnessSpec
    """The measurement as it was last asked for."""
    provenance: Provenance


class CellStore:
    """The folder of one measurement.

    Args:
        folder: E.g. ``results/<name>``; need not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def cells_path(self) -> Path:
        """``cells.jsonl``, append-only."""
        return self.folder / "cells.jsonl"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a measurement."""
        return (self.folder / MEASUREMENT_FILE).exists()

    def open(self, spec: RobustnessSpec) -> Self:
        """Make the folder, or find it again, and write down what is asked now.

        A torn last line, which a killed process left, is moved aside.

        Raises:
            StudyError: If the folder holds another measurement, or another format.
            PreflightError: If it cannot be written.
        """
        if self.exists and (stored := self.document().config.name) != spec.name:
            raise StudyError(
                f"{self.folder}: must hold the measurement '{spec.name}'; got '{stored}'. "
                "Choose another folder with --results."
            )
        document = MeasurementDocument(
            format=CELL_FORMAT, config=spec, provenance=current_provenance()
        )
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps(document.resolved(), indent=2, ensure_ascii=False)
            replace_file(self.folder / MEASUREMENT_FILE, text + "\n")
            mend_lines(self.cells_path, is_whole=partial(is_stored, model=CellRecord))
        return self

    def document(self) -> MeasurementDocument:
        """Read what was asked.

        Raises:
            StudyError: If it is missing, damaged or of another format.
        """
        path = self.folder / MEASUREMENT_FILE
        try:
            text = path.read_text(encoding="utf-8")
            found = json.loads(text).get("format")
        except FileNotFoundError:
            raise RunFolderError(f"{path}: no such measurement. Check the folder.") from None
        except (OSError, ValueError, AttributeError) as error:
            raise RunFolderError(f"{path}: cannot be read; got {error}. Restore it.") from None
        if found != CELL_FORMAT:
            raise StudyError(
                f"{path}: format must be {CELL_FORMAT}; got {found!r}. "
                "Read it with the safemerge version that wrote it."
            )
        return parse_stored(text, MeasurementDocument, where=str(path))

    def append(self, record: CellRecord) -> None:
        """Append one finished cell, and return once it is on disk.

        Raises:
            PreflightError: If the disk is full; the file is left as it was.
        """
        with disk_errors(self.folder):
            append_line(
                self.cells_path,
                record.model_dump_json().encode(),
                is_whole=partial(is_stored, model=CellRecord),
            )

    def records(self) -> list[CellRecord]:
        """Read every stored cell, the newest of each key, in the order of the last finish.

        Raises:
            StudyError: If a line is damaged; names it.
        """
        newest: dict[str, CellRecord] = {}
        for position, line in enumerate(read_lines(self.cells_path), start=1):
            record = parse_stored(line, CellRecord, where=f"{self.cells_path}, line {position}")
            newest.pop(record.key, None)
            newest[record.key] = record
        return list(newest.values())

    def write_keys(self, keys: Sequence[str]) -> None:
        """Write down which keys the grid has now, for drawing the results again."""
        self.write(_KEYS_FILE, json.dumps(list(keys), indent=1) + "\n")

    def grid_records(self) -> list[CellRecord]:
        """Return the finished cells of the grid that was last asked for, in its order."""
        try:
            keys = json.loads((self.folder / _KEYS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError as error:
            raise StudyError(
                f"{self.folder / _KEYS_FILE}: damaged; got {error}. Run the measurement again "
                "with --resume."
            ) from None
        by_key = {record.key: record for record in self.records()}
        return [by_key[key] for key in keys if key in by_key]

    def write(self, name: str, content: str | bytes) -> Path:
        """Replace a file of the folder whole and return its path."""
        path = self.folder / name
        with disk_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        return path

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the folder for one driver, as long as its process lives.

        Raises:
            StudyError: If another process measures into this folder.
        """
        with disk_errors(self.folder):
            handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise StudyError(
                    f"{self.folder}: another process is running this measurement; got a lock. "
                    "Wait for it, or stop it."
                ) from None
            yield
        finally:
            os.close(handle)
