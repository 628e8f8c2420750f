"""The folder of a run: a lock, whole documents, records that only grow; safe against being killed.

Searches, robustness grids, optimisations, generated data and training stages all keep theirs here.
Documents are replaced whole; records are appended under a lock and synced to disk, each with a
digest beside it that vouches for every line before; nothing is rewritten in place.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel

from safemerge.chained_lines import ChainedLines
from safemerge.config.base import StrictModel
from safemerge.errors import PreflightError, RunFolderError, UserError
from safemerge.files import (
    TornLine,
    disk_errors,
    free_name,
    is_stored,
    parse_stored,
    replace_file,
    restore_last_line,
)
from safemerge.provenance import utc_now

Record = TypeVar("Record", bound=BaseModel)
Document = TypeVar("Document", bound=BaseModel)

PLACE_FILE = ".place"
"""Holds the URL of a run that only works in its folder."""

_LOCK_FILE = ".lock"
_SPARE_BYTES = 100e6
_FLOCK = "hhqqi"
"""``struct flock`` on 64-bit Linux: type, whence, start, length, process."""


class RecordFile(Generic[Record]):
    """Records in the order they were finished, one JSON line each, with their running digest.

    Any number of processes may read and append. Files of earlier versions have no digests and
    get them with the next append.

    Args:
        path: E.g. ``trials.jsonl``; need not exist yet.
        model: What a line holds.
        advice: What to do about lines that are damaged, gone or edited; None for the options of
            `safemerge.chained_lines`.
    """

    def __init__(self, path: Path, model: type[Record], *, advice: str | None = None) -> None:
        self.path = path
        self.torn: TornLine | None = None
        """The torn line that was moved aside, if there was one."""
        self._model = model
        self._advice = advice
        self._is_whole = partial(is_stored, model=model)
        self._lines = ChainedLines(path, is_whole=self._is_whole, advice=advice)

    def append(self, record: Record) -> None:
        """Append a record, and return once it is on disk.

        Raises:
            PreflightError: If the disk is full; the file is left as it was.
            StudyError: If the folder is gone.
            ChangedRunError: If lines that were written are gone.
        """
        with disk_errors(self.path.parent):
            self.torn = self._lines.append(record.model_dump_json().encode()) or self.torn

    def read(self) -> list[Record]:
        """Return every record; [] if there is no such file.

        Raises:
            StudyError: If a line is damaged; names it.
            ChangedRunError: If lines are gone, edited or foreign.
        """
        where, advice = f"{self.path}, line", self._advice
        with _without_collection():
            return [
                parse_stored(line, self._model, where=f"{where} {number}", advice=advice)
                for number, line in enumerate(self._lines.read(), start=1)
            ]

    def restore(self) -> None:
        """Move an unfinished last line, which a killed process left, to ``<name>.torn``.

        One that is a whole record all the same is finished.

        Raises:
            PreflightError: If the folder cannot be written.
        """
        with disk_errors(self.path.parent):
            self.torn = restore_last_line(self.path, is_whole=self._is_whole)

    def remove(self) -> None:
        """Remove the file and its digests."""
        for path in (self.path, self._lines.digest_path):
            path.unlink(missing_ok=True)


class RunFolder:
    """A run's folder; kinds of runs derive from it and name their document.

    Args:
        folder: Where the run lives, e.g. ``results/<name>``; need not exist yet.
    """

    document_file: ClassVar[str] = "run.json"
    """What was asked for, written first: its presence marks the folder of such a run."""
    noun: ClassVar[str] = "run"
    """What a message calls such a run."""
    format: ClassVar[int] = 1
    """Version of the folder's layout; another one is refused, never guessed at."""
    private: ClassVar[bool] = False
    """Whether the folder is its owner's alone, as it holds text that models generated."""

    _held: ClassVar[dict[Path, str]] = {}
    _turn: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def under(cls, results: str | os.PathLike[str], name: str) -> Self:
        """Return the folder of a named run.

        Args:
            results: As given with ``--results``; ``~`` is a home folder.
            name: Name of the run.

        Raises:
            PreflightError: If no user has that name.
        """
        scheme, is_url, _ = os.fspath(results).partition("://")
        if is_url:  # not repeated whole: it may hold a key
            raise PreflightError(
                f"--results: must be a folder; got a URL ({scheme[:20]}://…). Only "
                "`safemerge search` stores results at a URL."
            )
        try:
            return cls(Path(results).expanduser() / name)
        except RuntimeError:
            raise PreflightError(
                f"--results: must be a folder; got an unknown user in {str(results)[:80]!r}. "
                "Choose another folder."
            ) from None

    @property
    def document_path(self) -> Path:
        """The file that says what was asked for."""
        return self.folder / self.document_file

    @property
    def place(self) -> str:
        """Where the run is, as commands take it: its folder, or the URL that it is stored at."""
        try:
            return (self.folder / PLACE_FILE).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return str(self.folder)

    @property
    def log_path(self) -> Path:
        """``log.txt``."""
        return self.folder / "log.txt"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run."""
        return self.document_path.exists()

    def refuse_existing(self, *, again: str, instead: str = "remove the folder") -> None:
        """Refuse to write over a run that the folder holds.

        Args:
            again: Command that resumes it, for the message.
            instead: What else can be done, for the message.

        Raises:
            UserError: If the folder holds one.
        """
        if self.exists:
            raise UserError(
                f"{self.place}: holds a run of this {self.noun} already. Continue it with "
                f"`{again}`, {instead}, or rename the {self.noun}."
            )

    def check_disk(self) -> None:
        """Refuse to start without a place for the folder.

        Raises:
            PreflightError: If it cannot be made or written, or less than 100 MB are free there.
        """
        there = self._nearest()
        problem = None
        if not there.is_dir():
            problem = f"a file, {there}"
        elif not os.access(there, os.W_OK | os.X_OK):
            problem = f"a folder that cannot be written, {there}"
        if problem is not None:
            raise PreflightError(
                f"{self.folder}: the run's folder must be a place that can be written; got "
                f"{problem}. Choose another folder with --results."
            )
        free = shutil.disk_usage(there).free
        if free < _SPARE_BYTES:
            raise PreflightError(
                f"{self.folder}: needs 100 MB of free space; got {free / 1e6:.0f} MB. Free some, "
                "or choose another folder with --results."
            )

    def read_document(self, model: type[Document]) -> Document:
        """Read what was asked for.

        Raises:
            RunFolderError: If it is missing, cannot be read, or is of another format.
            StudyError: If it is damaged.
        """
        text = self._document_text()
        found = _format_of(text)
        if found not in (self.format, None):
            raise RunFolderError(
                f"{self.document_path}: format must be {self.format}; got {found!r}. "
                "Read it with the safemerge version that wrote it."
            )
        return parse_stored(text, model, where=str(self.document_path))

    def write(self, name: str, content: str | bytes) -> Path:
        """Replace a file of the folder whole, and return its path.

        Raises:
            PreflightError: If the disk is full, or the folder cannot be written.
        """
        path = self.folder / name
        with disk_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        return path

    def write_json(self, name: str, document: StrictModel | dict[str, Any]) -> Path:
        """Replace a JSON file of the folder whole; see `write`."""
        found = document.resolved() if isinstance(document, StrictModel) else document
        return self.write(name, json.dumps(found, indent=2, ensure_ascii=False) + "\n")

    def log(self, message: str) -> None:
        """Append a line with the time to ``log.txt``; never text that a model generated."""
        with disk_errors(self.folder), self.log_path.open("a", encoding="utf-8") as stream:
            stream.write(f"{utc_now()} {message}\n")

    def accept_records(self) -> dict[Path, Path]:
        """Take the folder's records as they are now, though lines are gone, edited or foreign.

        Returns:
            Where the digests so far are kept, by file of records; only files that had to be
            accepted.
        """
        found = {}
        with disk_errors(self.folder):
            for digests in sorted(self.folder.glob("*.digest")):
                lines = ChainedLines(digests.with_suffix(".jsonl"), is_whole=lambda _: False)
                if (kept := lines.accept()) is not None:
                    found[lines.path] = kept
        return found

    def set_aside(self) -> Path:
        """Rename the folder, so that a new run can begin under its name.

        Returns:
            What the folder is called now.

        Raises:
            RunFolderError: If another process works in it.
        """
        kept = free_name(self.folder)
        with self.locked(), disk_errors(self.folder):
            self.folder.rename(kept)
        return kept

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, made if it is missing, for one process: a second one is refused.

        A POSIX record lock: the system drops it when the process ends, however it ends, so that
        the next one takes over; children do not inherit it.

        Raises:
            RunFolderError: If another process works in it, or another thread of this one; names
                the process, its machine and since when.
        """
        place = self.folder.resolve()
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.private:
                self.folder.chmod(0o700)
        with self._turn:
            if place in self._held:
                raise self._in_use(self._held[place])
            with disk_errors(self.folder):
                handle = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.read(handle, 200).decode(errors="replace").strip()
                os.close(handle)
                raise self._in_use(owner) from None
            self._held[place] = said = f"{_owner()} since {utc_now()}"
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{said}\n".encode(), 0)
            yield
        finally:
            if self.private:
                self._close_files()
            with self._turn:
                del self._held[place]
                os.close(handle)

    def empty(self) -> None:
        """Remove what the folder holds, except the lock, which the caller holds."""
        with disk_errors(self.folder):
            for path in self.folder.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != _LOCK_FILE:
                    path.unlink()

    def owner(self) -> str | None:
        """Return the process that works in the folder, e.g. ``42 on node1 since ...``, if any.

        The lock is asked for and not taken.
        """
        with self._turn:
            # NOTE: a process that closes the file anywhere loses its own lock on it.
            if (own := self._held.get(self.folder.resolve())) is not None:
                return own
            try:
                with (self.folder / _LOCK_FILE).open("r+b") as handle:
                    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
                    found = fcntl.fcntl(handle, fcntl.F_GETLK, asked)
                    said = handle.read(200).decode(errors="replace").strip()
            except OSError:
                return None
        return None if struct.unpack(_FLOCK, found)[0] == fcntl.F_UNLCK else said or "unknown"

    def _close_files(self) -> None:
        """Take others' rights from every file, which a copy of the folder would keep."""
        with suppress(OSError):
            for path in self.folder.rglob("*"):
                if not path.is_symlink():
                    path.chmod(0o700 if path.is_dir() else 0o600)

    def _in_use(self, owner: str) -> RunFolderError:
        return RunFolderError(
            f"{self.folder}: another process is running this {self.noun}; got process "
            f"{owner or 'unknown'}. Wait for it, or stop it."
        )

    def _document_text(self) -> str:
        path = self.document_path
        try:
            return path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise RunFolderError(f"{path}: no such {self.noun}. Check the folder.") from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "bytes that are no text"
            raise RunFolderError(f"{path}: cannot be read; got {reason}.") from None

    def _nearest(self) -> Path:
        """Return the folder, or the nearest above it that exists.

        Raises:
            PreflightError: If no folder can be there.
        """
        folder = self.folder
        try:
            place = folder.resolve()
            folder.exists()  # raises where a name is too long
            broken = next((at for at in (folder, *folder.parents) if at.is_symlink()), None)
            if broken is not None and not broken.exists():
                raise FileNotFoundError(0, f"a link to a place that is not there, {broken}")
            return next(item for item in (place, *place.parents) if item.exists())
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error).split(" from ")[0].rstrip(".")
            raise PreflightError(
                f"{str(folder)[:80]}: must be a place where a folder can be made; got: {reason}. "
                "Choose another folder with --results."
            ) from None


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for cycles again and again while millions of scores are read."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _owner() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"


def _format_of(text: str) -> object:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document.get("format") if isinstance(document, dict) else None
