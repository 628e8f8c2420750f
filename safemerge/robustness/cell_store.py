"""The folder of a robustness measurement: what was asked, and every finished cell.

``cells.jsonl`` is the truth about what finished, ``attacks.jsonl`` about what a search of attacks
tried. A cell is known by the digest of all that its
result depends on, so a file whose grid grew continues the same folder, and cells of other settings
are kept and left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.errors import StudyError
from safemerge.provenance import Provenance, current_provenance
from safemerge.records import CandidateResult
from safemerge.robustness.spec import Cell, RobustnessSpec
from safemerge.run_folder import RecordFile, RunFolder

_KEYS_FILE = "grid.json"
"""Keys of the grid's cells, in its order."""


class LossPoint(StrictModel):
    """Loss on held-out harmful rows, along an attack."""

    step: int = Field(ge=0)
    """Optimiser steps done."""
    harmful_loss: float
    """Mean cross-entropy over target tokens, nats."""


class HarmPoint(StrictModel):
    """Harmful score along an attack."""

    step: int = Field(ge=0)
    """Optimiser steps done."""
    harmful_score: float = Field(ge=0, le=1)


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
    harm_curve: list[HarmPoint] = Field(default_factory=list, exclude_if=lambda given: not given)
    """Harmful score along the attack, its end included and its start not; empty if it was
    measured at the end alone."""
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


class CellStore(RunFolder):
    """The folder of one measurement."""

    document_file = "robustness_spec.json"
    noun = "measurement"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._cells = RecordFile(self.cells_path, CellRecord)
        self._attacks = RecordFile(self.folder / "attacks.jsonl", CellRecord)

    @property
    def cells_path(self) -> Path:
        """``cells.jsonl``, append-only."""
        return self.folder / "cells.jsonl"

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
            format=self.format, config=spec, provenance=current_provenance()
        )
        self.write_json(self.document_file, document)
        self._cells.restore()
        self._attacks.restore()
        return self

    def document(self) -> MeasurementDocument:
        """Read what was asked.

        Raises:
            StudyError: If it is missing, damaged or of another format.
        """
        return self.read_document(MeasurementDocument)

    def append(self, record: CellRecord) -> None:
        """Append one finished cell, and return once it is on disk.

        Raises:
            PreflightError: If the disk is full; the file is left as it was.
        """
        self._cells.append(record)

    def records(self) -> list[CellRecord]:
        """Read every stored cell, the newest of each key, in the order of the last finish.

        Raises:
            StudyError: If a line is damaged; names it.
            ChangedRunError: If lines are gone, edited or foreign.
        """
        return _newest(self._cells)

    def append_attack(self, record: CellRecord) -> None:
        """Append a cell of an attacker's search; as `append`, in ``attacks.jsonl``."""
        self._attacks.append(record)

    def attack_records(self) -> list[CellRecord]:
        """Read every stored cell of an attacker's searches; as `records`."""
        return _newest(self._attacks)

    def write_keys(self, keys: Sequence[str]) -> None:
        """Write down which keys the grid has now, for drawing the results again."""
        self.write(_KEYS_FILE, json.dumps(list(keys), indent=1) + "\n")

    def grid_records(self) -> list[CellRecord]:
        """Return the finished cells of the grid that was last asked for, in its order."""
        try:
            keys = json.loads((self.folder / _KEYS_FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (ValueError, RecursionError) as error:
            raise StudyError(
                f"{self.folder / _KEYS_FILE}: damaged; got {error}. Run the measurement again "
                "with --resume."
            ) from None
        by_key = {record.key: record for record in self.records()}
        return [by_key[key] for key in keys if key in by_key]


def _newest(file: RecordFile[CellRecord]) -> list[CellRecord]:
    newest: dict[str, CellRecord] = {}
    for record in file.read():
        newest.pop(record.key, None)
        newest[record.key] = record
    return list(newest.values())
