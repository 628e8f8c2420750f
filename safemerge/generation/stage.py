"""A stage's file: outcomes appended batch by batch, so that a killed run asks nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from safemerge.config.base import StrictModel
from safemerge.errors import StudyError
from safemerge.files import disk_errors
from safemerge.generation.record import Ask, Outcome
from safemerge.run_folder import RecordFile

Work = Callable[[Sequence[Sequence[Ask]]], Iterator[list[Outcome]]]
"""Outcomes of batches of prompts, in their order."""


class _Batch(StrictModel):
    outcomes: list[Outcome]


class StageFile:
    """Outcomes of a stage in ``<name>-<digest>.jsonl``, one line a batch.

    Args:
        folder: Folder of the stages, made if it is missing.
        name: What the stage does, for people.
        digest: Digest of all that its outcomes hang on: another one is another file.

    Raises:
        StudyError: If a line is damaged; names it.
        PreflightError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str, digest: str) -> None:
        self.path = folder / f"{name}-{digest}.jsonl"
        self._next = 0
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._batches = RecordFile(self.path, _Batch, advice="Remove the file, then resume.")
        self._batches.restore()
        self._stored = [batch.outcomes for batch in self._batches.read()]

    def outcomes(self, batches: Sequence[Sequence[Ask]], work: Work) -> Iterator[list[Outcome]]:
        """Yield the outcomes of the next batches: those stored, then new ones as they come.

        Args:
            batches: Prompts in the order in which every run of this stage asks them.
            work: Asks what is not stored yet.

        Raises:
            StudyError: If a stored batch is of another size.
            PreflightError: If the disk is full.
        """
        stored = self._stored[self._next : self._next + len(batches)]
        self._next += len(batches)
        for batch, outcomes in zip(batches, stored, strict=False):
            if len(batch) != len(outcomes):
                raise StudyError(
                    f"{self.path}: stored batches must fit what is asked; got {len(outcomes)} "
                    f"outcomes for {len(batch)} prompts. Remove the file."
                )
            yield outcomes
        missing = batches[len(stored) :]
        for outcomes in work(missing) if missing else ():
            self._batches.append(_Batch(outcomes=outcomes))
            yield outcomes

    def remove(self) -> None:
        """Remove the file: a later run asks everything again."""
        self._batches.remove()
