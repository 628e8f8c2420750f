"""Which sampled trials are in flight, in a file: whatever Optuna's storage is, or becomes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import ValidationError

from safemerge.config.base import StrictModel
from safemerge.files import replace_file


class FlyingTrial(StrictModel):
    """A sampled trial that was asked for; once it has a record, that counts instead."""

    number: int
    space: str
    params: dict[str, float | int | bool | str]
    """Value by dotted path."""
    start: str | None = None
    """Warm start that it was sampled for."""
    attempt: int = 0
    """How often the candidate crashed before."""
    retry_of: int | None = None
    """Trial that this one tries again."""
    started_at: str
    """UTC, ISO 8601."""


class _Document(StrictModel):
    trials: list[FlyingTrial]


class FlightFile:
    """``in_flight.json`` of a run: written whenever a trial is asked for.

    It lists a trial until another one is asked for, so some of them may be finished by now.
    Optuna's study in memory forgets them, and a run may change its storage, or its machine.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "in_flight.json"
        self._trials: dict[int, FlyingTrial] = {}

    def read(self) -> list[FlyingTrial]:
        """Return what was in flight; nothing where the file is missing or damaged.

        Raises:
            OSError: If the file is there and cannot be read.
        """
        try:
            return _Document.model_validate_json(self.path.read_bytes()).trials
        except (FileNotFoundError, ValidationError):
            return []

    def count_open(self, finished: Collection[int]) -> int | None:
        """Count the trials that have no record yet, by number; None if it cannot be read."""
        try:
            return sum(item.number not in finished for item in self.read())
        except OSError:
            return None

    def clear(self) -> None:
        """Begin anew, with nothing in flight.

        Raises:
            OSError: As the system reports it.
        """
        self._trials = {}
        self._write(())

    def add(self, trial: FlyingTrial) -> None:
        """Note that a trial is in flight, and return once it is on disk.

        Raises:
            OSError: As the system reports it; the trial is then not noted.
        """
        self._write([*self._trials.values(), trial])
        self._trials[trial.number] = trial

    def remove(self, number: int) -> None:
        """Leave a finished trial out of what is written next."""
        self._trials.pop(number, None)

    def _write(self, trials: Iterable[FlyingTrial]) -> None:
        replace_file(self.path, _Document(trials=list(trials)).model_dump_json())
