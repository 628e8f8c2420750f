"""A run's folder: what was asked, every finished trial, the front; safe against being killed.

``trials.jsonl`` is the truth about what finished. Lines are appended under a lock and synced
to disk, each with an entry in ``trials.digest`` that vouches for it; every other file is replaced
whole. Nothing here is ever rewritten in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import yaml

from safemerge.chained_lines import ChainedLines
from safemerge.config.base import StrictModel
from safemerge.config.inputs import AskedRows
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import RunFolderError, StudyError
from safemerge.files import (
    TornLine,
    disk_errors,
    free_name,
    is_stored,
    mend_lines,
    parse_stored,
    replace_file,
)
from safemerge.provenance import utc_now
from safemerge.records import Front, TrialRecord
from safemerge.study_document import STORE_FORMAT, StudyDocument, check_same_study, new_document


class RunStore:
    """The folder of one run.

    ``RunStore(folder).create(spec)`` starts a run, ``RunStore.open(folder)`` finds one again.
    Any number of processes may read; appends from several are serialised by a file lock.

    Args:
        folder: Where the run lives, e.g. ``results/<study>``; need not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._trials = ChainedLines(
            self.trials_path, is_whole=partial(is_stored, model=TrialRecord)
        )
        self.torn: TornLine | None = None
        """The torn line that `open` moved aside, if there was one."""

    @property
    def study_path(self) -> Path:
        """``study.json``, written first."""
        return self.folder / "study.json"

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

    @property
    def log_path(self) -> Path:
        """``log.txt``."""
        return self.folder / "log.txt"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.study_path.exists()

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
            self._replace("asked.json", json.dumps(rows, ensure_ascii=False))
        self._replace("study.json", _pretty(new_document(spec)))
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
        with disk_errors(store.folder):
            store.torn = mend_lines(
                store.trials_path, is_whole=partial(is_stored, model=TrialRecord)
            )
        return store

    def study(self) -> StudyDocument:
        """Read ``study.json``.

        Returns:
            The stored study, its digest and provenance.

        Raises:
            StudyError: If it is missing, damaged or of another format.
        """
        path = self.study_path
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise RunFolderError(f"{path}: no such run. Check the folder.") from None
        except OSError as error:
            raise RunFolderError(f"{path}: cannot be read; got {error.strerror}.") from None
        found = _format_of(text)
        if found not in (STORE_FORMAT, None):
            raise RunFolderError(
                f"{path}: format must be {STORE_FORMAT}; got {found!r}. "
                "Read it with the safemerge version that wrote it."
            )
        return parse_stored(text, StudyDocument, where=str(path))

    def asked(self) -> AskedRows | None:
        """Read ``asked.json``; None if there is none, or it is damaged: it only helps to name."""
        try:
            found: AskedRows = json.loads(self.asked_path.read_bytes())
        except (OSError, ValueError):
            return None
        return found

    def check_same_study(self, spec: StudySpec, *, rows: AskedRows | None = None) -> None:
        """Refuse to continue a run with another study, or with other inputs.

        More trials, another storage and the evaluator's `RESUMABLE_EVALUATOR` fields may
        differ; everything else may not. Checkpoints are compared by fingerprint where both
        sides have one, else by reference; data, templates and tokenizers by content, see
        `safemerge.config.inputs.input_change`.

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

    def set_aside(self) -> Path:
        """Rename the run's folder, so that a new run can begin under its name.

        Returns:
            What the folder is called now.

        Raises:
            StudyError: If another process drives the run.
        """
        kept = free_name(self.folder)
        with self.driving(), disk_errors(self.folder):
            self.folder.rename(kept)
        return kept

    def append(self, record: TrialRecord) -> None:
        """Append one finished trial, and return once it is on disk.

        Args:
            record: The trial.

        Raises:
            PreflightError: If the disk is full; the file is left as it was.
            StudyError: If the folder is gone, or lines that were written are.
        """
        with disk_errors(self.folder):
            torn = self._trials.append(record.model_dump_json().encode())
        self.torn = torn or self.torn

    def trials(self) -> list[TrialRecord]:
        """Read every finished trial, in the order they finished.

        Returns:
            The records; empty if none has finished.

        Raises:
            StudyError: If a line is damaged, or a trial number comes twice; names the line.
            ChangedRunError: If lines are gone, edited or foreign; see `accept_trials`.
        """
        records: list[TrialRecord] = []
        line_by_number: dict[int, int] = {}
        for position, line in enumerate(self._trials.read(), start=1):
            where = f"{self.trials_path}, line {position}"
            record = parse_stored(line, TrialRecord, where=where)
            first = line_by_number.setdefault(record.number, position)
            if first != position:
                raise StudyError(
                    f"{where}: trial numbers must be unique; got {record.number} again "
                    f"(first on line {first}). Was the file edited or merged by hand?"
                )
            records.append(record)
        return records

    def accept_trials(self) -> Path | None:
        """Take ``trials.jsonl`` as it is now, though lines are gone, edited or foreign.

        Returns:
            Where the digest file so far is kept; None if nothing had to be accepted.
        """
        with disk_errors(self.folder):
            return self._trials.accept()

    def write_front(self, front: Front) -> Path:
        """Replace ``front.json`` whole.

        Args:
            front: The published front.

        Returns:
            Its path.
        """
        return self._replace("front.json", _pretty(front))

    def read_front(self) -> Front | None:
        """Read ``front.json``.

        Returns:
            The front, or None if none has been written yet.

        Raises:
            StudyError: If the file is damaged.
        """
        try:
            text = self.front_path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return parse_stored(text, Front, where=str(self.front_path))

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
        return self._replace(f"recipes/{trial}.yaml", text)

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
        return path if path.exists() else self._replace(name, content)

    def log(self, message: str) -> None:
        """Append a line with the time to ``log.txt``; never text that a model generated."""
        with disk_errors(self.folder), self.log_path.open("a", encoding="utf-8") as stream:
            stream.write(f"{utc_now()} {message}\n")

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the run for one driver: a second process is refused.

        Held by the process (a POSIX record lock), so it ends with it, however it ends, and
        children do not inherit it.

        Raises:
            StudyError: If another process drives this run.
        """
        path = self.folder / ".lock"
        with disk_errors(self.folder):
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
                raise StudyError(
                    f"{self.folder}: another process is running this study; got process "
                    f"{owner}. Wait for it, or stop it."
                ) from None
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    def _replace(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        with disk_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        return path


def _pretty(model: StrictModel) -> str:
    return json.dumps(model.resolved(), indent=2, ensure_ascii=False) + "\n"


def _format_of(text: str) -> object:
    try:
        document = json.loads(text)
    except ValueError:
        return None
    return document.get("format") if isinstance(document, dict) else None
