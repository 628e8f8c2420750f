"""A search's folder: the study, every finished trial, the front.

``trials.jsonl`` is the truth about what finished.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import yaml

from safemerge.config.inputs import AskedRows
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import StudyError
from safemerge.files import TornLine, parse_stored
from safemerge.records import Front, TrialRecord
from safemerge.run_folder import RecordFile, RunFolder
from safemerge.study_document import STORE_FORMAT, StudyDocument, check_same_study, new_document


class RunStore(RunFolder):
    """The folder of one search.

    ``RunStore(folder).create(spec)`` starts a run, ``RunStore.open(folder)`` finds one again.
    """

    document_file = "study.json"
    noun = "study"
    format = STORE_FORMAT

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._trials = RecordFile(self.trials_path, TrialRecord)

    @property
    def torn(self) -> TornLine | None:
        """The torn line that was moved aside, if there was one."""
        return self._trials.torn

    @property
    def study_path(self) -> Path:
        """``study.json``, written first."""
        return self.document_path

    @property
    def trials_path(self) -> Path:
        """``trials.jsonl``, append-only."""
        return self.folder / "trials.jsonl"

    @property
    def front_path(self) -> Path:
        """``front.json``."""
        return self.folder / "front.json"

    @property
    def asked_path(self) -> Path:
        """``asked.json``: the rows that each suite asks, by id and digest of the text."""
        return self.folder / "asked.json"

    def create(self, spec: StudySpec, *, rows: AskedRows | None = None) -> Self:
        """Make the folder and write ``study.json``.

        Args:
            spec: The study, ideally with its checkpoints resolved to fingerprints, and with its
                inputs; else the files that it names are digested here.
            rows: The rows that its suites ask, if they are loaded.

        Returns:
            The store itself.

        Raises:
            StudyError: If the folder already holds a run.
            PreflightError: If the folder cannot be written, or the disk is full.
        """
        for path in (self.study_path, self.trials_path):
            if path.exists():
                raise StudyError(
                    f"{self.folder}: already holds a run; got {path.name}. "
                    "Resume it, or use a new study name."
                )
        if rows is not None:
            self.write("asked.json", json.dumps(rows, ensure_ascii=False))
        self.write_json(self.document_file, new_document(spec))
        return self

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Find an existing run, and move a torn last line of its trials aside.

        A last line without its newline was being written when its process was killed. If it
        is a whole record all the same, it is kept; else it is appended to
        ``trials.jsonl.torn`` and described by the returned store's `torn`.

        Args:
            folder: The run's folder.

        Returns:
            The store.

        Raises:
            StudyError: If the folder holds no run, or one this version cannot read.
        """
        store = cls(folder)
        store.study()
        store._trials.restore()
        return store

    def study(self) -> StudyDocument:
        """Read ``study.json``.

        Returns:
            The stored study, its digest and provenance.

        Raises:
            StudyError: If it is missing, damaged or of another format.
        """
        return self.read_document(StudyDocument)

    def asked(self) -> AskedRows | None:
        """Read ``asked.json``; None if there is none, or it is damaged: it only helps to name."""
        try:
            found: AskedRows = json.loads(self.asked_path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return found

    def check_same_study(self, spec: StudySpec, *, rows: AskedRows | None = None) -> None:
        """Refuse to continue a run with another study, or with other inputs.

        Fields that are marked `FREE` may differ, e.g. the number of trials; no other may.
        Checkpoints are compared by fingerprint where both sides have one, else by reference;
        data, templates and tokenizers by content, see `safemerge.config.inputs.input_changes`.

        Args:
            spec: The study that the user gives now.
            rows: The rows that its suites ask now, if they are loaded.

        Raises:
            StudyError: With the first differing path and both values.
            ChangedRunError: If what the study reads has changed; names it. Or if the run is of
                an earlier version, which did not record it.
        """
        stored = self.study()
        check_same_study(stored, spec, rows_before=self.asked(), rows=rows, where=self.folder)

    def append(self, record: TrialRecord) -> None:
        """Append one finished trial, and return once it is on disk.

        Args:
            record: The trial.

        Raises:
            PreflightError: If the disk is full; the file is left as it was.
            StudyError: If the folder is gone, or lines that were written are.
        """
        self._trials.append(record)

    def trials(self) -> list[TrialRecord]:
        """Read every finished trial, in the order they finished.

        Returns:
            The records; empty if none has finished.

        Raises:
            StudyError: If a line is damaged, or a trial number comes twice; names the line.
            ChangedRunError: If lines are gone, edited or foreign; see `accept_records`.
        """
        records = self._trials.read()
        line_by_number: dict[int, int] = {}
        for position, record in enumerate(records, start=1):
            first = line_by_number.setdefault(record.number, position)
            if first != position:
                raise StudyError(
                    f"{self.trials_path}, line {position}: trial numbers must be unique; got "
                    f"{record.number} again (first on line {first}). Was the file edited or "
                    "merged by hand?"
                )
        return records

    def write_front(self, front: Front) -> Path:
        """Replace ``front.json`` whole.

        Args:
            front: The published front.

        Returns:
            Its path.
        """
        return self.write_json("front.json", front)

    def read_front(self) -> Front | None:
        """Read ``front.json``.

        Returns:
            The front, or None if none has been written yet.

        Raises:
            StudyError: If the file is damaged.
        """
        try:
            content = self.front_path.read_bytes()
        except FileNotFoundError:
            return None
        return parse_stored(content, Front, where=str(self.front_path))

    def write_recipe(self, trial: int | str, recipe: MergeRecipe | dict[str, Any]) -> Path:
        """Write ``recipes/<trial>.yaml``.

        Args:
            trial: Trial number, or another file stem.
            recipe: The resolved recipe.

        Returns:
            Its path.
        """
        document = recipe.resolved() if isinstance(recipe, MergeRecipe) else recipe
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
        return self.write(f"recipes/{trial}.yaml", text)

    def write_artifact(self, content: bytes, *, suffix: str = "") -> Path:
        """Keep bytes under their own digest; the same content is stored once.

        Args:
            content: What to keep.
            suffix: File name ending, e.g. ``.json``.

        Returns:
            ``artifacts/<sha256><suffix>``.
        """
        name = f"artifacts/{hashlib.sha256(content).hexdigest()}{suffix}"
        path = self.folder / name
        return path if path.exists() else self.write(name, content)
