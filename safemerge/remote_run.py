"""A run whose results live at a URL, worked on in a folder of this machine.

Below the URL, ``journal/`` holds numbered entries that are created once and never replaced: what
was appended to the run's files of lines, and the digests of its documents. Who creates entry N has
the run; a driver that lost it (paused, cut off, taken for dead) finds N taken at its next write
and stops, so that two drivers never mix. A driver that lives renews ``heartbeat.json``. Documents
and the report lie beside as plain objects. design/object-stores.md says why.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from safemerge.cache import cache_dir
from safemerge.config.base import StrictModel, digest
from safemerge.errors import (
    ChangedRunError,
    ObjectStoreError,
    RunFolderError,
    SafemergeError,
    StudyError,
    UserError,
)
from safemerge.files import disk_errors, locked_file, parse_stored, replace_file
from safemerge.interrupt import uninterrupted
from safemerge.object_store import ObjectStore, open_store
from safemerge.provenance import utc_now
from safemerge.run_folder import PLACE_FILE, RunFolder

SYNC_EVERY_S = 5.0
"""How often new records are looked for, and stored."""
BEAT_EVERY_S = 15.0
STALE_S = 60.0
"""A driver whose heartbeat stands still for so long is dead: four beats."""
FINAL_TRIES = 3

_FORMAT = 1
_LINES = (".jsonl", ".digest", ".txt")
"""Files that only grow, but for `RunFolder.accept_records`."""
_LOCAL = re.compile(r"study\.(db|journal).*|.*\.old-\d+")
"""What other machines make again: Optuna's storage."""
_DRAWN = re.compile(r"report\.html|figures/.*")
"""What is drawn from the records, by whoever likes."""
_ESSENTIAL = ("study.json", "asked.json")
"""Written once: another content is damage. Others are replaced while the search runs."""
_DRIVER_FILE = ".driver"

Say = Callable[[str], None]


class Appended(StrictModel):
    """Lines that were added to a file."""

    file: str
    offset: int
    """Bytes of the file that stay; what came behind is replaced."""
    text: str
    """Whole lines."""


class Entry(StrictModel):
    """A step of a run's journal."""

    format: Literal[1]
    driver: str
    """Random name of the process that wrote it."""
    owner: str
    """The same for people: process, machine, since when."""
    lines: list[Appended] = Field(default_factory=list)
    documents: dict[str, str] = Field(default_factory=dict)
    """SHA-256 by name of documents that were replaced."""
    removed: list[str] = Field(default_factory=list)
    """Documents that are no longer part of the run; their objects stay."""
    ends: bool = False
    """Whether the driver let the run go."""


class Beat(StrictModel):
    """A driver's sign of life."""

    driver: str
    count: int
    at: str
    """UTC, by the driver's clock; for people."""


@dataclass
class State:
    """A run as its journal tells it."""

    next: int = 0
    """Number of the next entry."""
    last: Entry | None = None
    lines: dict[str, bytearray] = field(default_factory=dict)
    """Content of the files of lines."""
    documents: dict[str, str] = field(default_factory=dict)
    """SHA-256 by name."""


class _Sent(NamedTuple):
    size: int
    sha256: str


class RemoteRun:
    """A run at a URL.

    Args:
        url: The run's own, e.g. ``s3://bucket/results/demo``.

    Raises:
        PreflightError: If it is no URL of an object store, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._store: ObjectStore = open_store(self.url)
        name = self.url.rpartition("/")[2]
        self._home = RunFolder(cache_dir() / "remote" / digest(self.url))
        self.folder = self._home.folder / name
        """Where a driver on this machine works."""

    def state(self) -> State:
        """Read the journal.

        Raises:
            ObjectStoreError: If the store cannot be asked.
            StudyError: If an entry is missing or damaged.
        """
        found = State()
        names = [name for name in self._store.names("journal") if name.endswith(".json")]
        contents = self._store.read_all([f"journal/{name}" for name in names])
        for number in range(len(names)):
            content = contents.get(_entry_name(number))
            if content is None:
                raise StudyError(
                    f"{self.url}: the journal must be whole; got no {_entry_name(number)} of "
                    f"{len(names)}. Restore the object from a version or a copy."
                )
            entry = parse_stored(content, Entry, where=f"{self.url}/{_entry_name(number)}")
            self._replay(found, entry)
        return found

    def owner(self, state: State) -> str | None:
        """Return the process that has the run, dead or alive; None if it was let go."""
        return None if state.last is None or state.last.ends else state.last.owner

    def fetch(self) -> Path:
        """Bring the run as it is now to a folder for reading, and return it.

        Raises:
            RunFolderError: If there is no run.
            ObjectStoreError, StudyError: See `state`.
        """
        state = self.state()
        if "study.json" not in state.documents:
            raise RunFolderError(f"{self.url}: no run there. Check the URL.")
        place = self._home.folder / "read"
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        with locked_file(place / ".lock", os.O_RDWR | os.O_CREAT):
            folder = place / self.folder.name
            self._materialise(state, folder)
        return folder

    def living_owner(self) -> str | None:
        """Return the process that has the run and gave a sign of life by its own clock lately."""
        state = self.state()
        content = self._store.read("heartbeat.json")
        owner = self.owner(state)
        if owner is None or state.last is None or content is None:
            return None
        beat = parse_stored(content, Beat, where=f"{self.url}/heartbeat.json")
        age = (datetime.now(UTC) - datetime.fromisoformat(beat.at)).total_seconds()
        return owner if beat.driver == state.last.driver and age < 2 * STALE_S else None

    def put_drawn(self, folder: Path) -> None:
        """Store the report and figures that were drawn in a folder.

        Raises:
            ObjectStoreError: If the store cannot be asked.
        """
        for name in _files(folder):
            if _DRAWN.fullmatch(name):
                self._store.put(name, (folder / name).read_bytes())

    @contextmanager
    def driven(self, say: Say) -> Iterator[Path]:
        """Have the run for a block: its folder is stored at the URL as it changes, and at the end.

        Args:
            say: Where news of waiting, of failures and of their end go.

        Yields:
            The folder, with what the URL holds.

        Raises:
            RunFolderError: If another driver has the run, or took it over meanwhile.
            ObjectStoreError: If the store cannot be asked at the start, or at the end; what
                was not stored is in the folder and is so by the next driver on this machine.
            StudyError: If the journal is damaged.
        """
        with ExitStack() as stack:
            stack.enter_context(self._home.locked())
            driver = _Driver(self, say)
            driver.claim()
            stack.enter_context(driver.running())
            yield self.folder

    def _replay(self, state: State, entry: Entry) -> None:
        for added in entry.lines:
            content = state.lines.setdefault(added.file, bytearray())
            if added.offset > len(content):
                raise StudyError(
                    f"{self.url}/{_entry_name(state.next)}: must add to the {len(content)} bytes "
                    f"of {added.file}; got offset {added.offset}. Restore the journal from a copy."
                )
            del content[added.offset :]
            content += added.text.encode()
        state.documents.update(entry.documents)
        for name in entry.removed:
            state.documents.pop(name, None)
        state.last = entry
        state.next += 1

    def _materialise(self, state: State, folder: Path) -> None:
        """Put a run in a folder's place: the old one is there, or the new one, or none.

        What only this machine has, Optuna's storage, stays.
        """
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        contents = self._store.read_all(list(state.documents))
        for name, wanted in state.documents.items():
            content = contents.get(name)
            whole = content is not None and hashlib.sha256(content).hexdigest() == wanted
            if not whole and name in _ESSENTIAL:
                raise ChangedRunError(
                    f"{self.url}/{name}: must be as it was written; got "
                    f"{'nothing' if content is None else 'another content'}. Restore the object "
                    "from a version or a copy."
                )
            if content is not None and whole:
                _write(fresh, name, content)
        for name, grown in state.lines.items():
            _write(fresh, name, bytes(grown))
        _write(fresh, PLACE_FILE, self.url.encode())
        with disk_errors(folder.parent):
            for path in folder.iterdir() if folder.is_dir() else ():
                if _LOCAL.fullmatch(path.name):
                    path.rename(fresh / path.name)
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)


class _Driver:
    """This process as the one that has a run."""

    def __init__(self, run: RemoteRun, say: Say) -> None:
        self._run, self._store, self._say = run, run._store, say
        self._token = uuid.uuid4().hex
        self._owner = f"{os.getpid()} on {socket.gethostname()} since {utc_now()}"
        self._next = self._beats = 0
        self._beat_at = float("-inf")
        self._sent: dict[str, _Sent] = {}
        self._there: set[str] = set()
        """Documents of the run that the folder had when it was last looked at."""
        self._stamps: dict[str, tuple[int, int]] = {}
        self._lost: SafemergeError | None = None
        self._failing = False
        self._over = threading.Event()

    def claim(self) -> None:
        """Take the run, and bring its folder up to date."""
        state = self._run.state()
        if (owner := self._run.owner(state)) is not None and not self._is_former(state):
            self._await_stale(state, owner)
        self._next = state.next
        # NOTE: what the journal holds cannot change any more once this entry is in.
        entry = Entry(format=1, driver=self._token, owner=self._owner)
        self._append(entry)
        name = _entry_name(self._next - 1)
        if self._store.create(name, entry.model_dump_json().encode()):
            raise ObjectStoreError(
                f"{self._run.url}: must refuse to create an object that is there (conditional "
                f"writes, If-None-Match); got {name} created twice. Two drivers could not be "
                "distinguished: use another store."
            )
        folder = self._run.folder
        relation = _relation(folder, state)
        if relation == "ahead" and not (state.documents or self._is_former(state)):
            relation = "other"  # of a run at this URL that is gone by now
        if relation == "other":
            kept = RunFolder(folder).set_aside()
            self._say(f"note: {kept} has other records than {self._run.url}; kept, not used")
        if relation != "ahead":
            self._run._materialise(state, folder)
        _write(folder, _DRIVER_FILE, self._token.encode())
        _write(folder, PLACE_FILE, self._run.url.encode())
        self._sent = {name: _sent(content) for name, content in state.lines.items()}
        for name, known in state.documents.items():
            self._sent[name] = _Sent(-1, known)
        self._there = set(state.documents).intersection(_files(folder))
        self._beat()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Store what changes for the length of a block, and all of it at its end."""
        thread = threading.Thread(target=self._loop, name="safemerge-results", daemon=True)
        thread.start()
        failed: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failed = error
            raise
        finally:
            with uninterrupted():
                self._over.set()
                thread.join()
                self._finish(failed)

    def _loop(self) -> None:
        while not self._over.wait(SYNC_EVERY_S):
            try:
                self._sync()
                if time.monotonic() - self._beat_at >= BEAT_EVERY_S:
                    self._beat()
                if self._failing:
                    self._say(f"{self._run.url}: can be written again; all results are stored")
                self._failing = False
            except RunFolderError as error:
                self._lost = error
                # Ends the search as Ctrl-C does; a signal also reaches a thread that waits.
                main = threading.main_thread().ident
                if main is not None:
                    signal.pthread_kill(main, signal.SIGINT)
                return
            except (SafemergeError, OSError) as error:
                if not self._failing:
                    self._say(f"note: results wait in {self._run.folder}: {error}")
                self._failing = True

    def _finish(self, failed: BaseException | None) -> None:
        for tries_left in reversed(range(FINAL_TRIES)):
            if self._lost is not None:
                raise self._lost from None
            try:
                self._sync(ends=True)
            except (ObjectStoreError, OSError) as error:
                if tries_left:
                    time.sleep(1.0)
                    continue
                if isinstance(error, OSError):
                    error = ObjectStoreError(
                        f"{self._run.url}: all results must be stored; got: {error}."
                    )
                message = (
                    f"{error} What was not stored is in {self._run.folder}: run the command again "
                    "on this machine, with --resume."
                )
                if failed is None:
                    raise ObjectStoreError(message) from None
                self._say(f"note: {message}")
                return
            else:
                return

    def _sync(self, *, ends: bool = False) -> None:
        """Store what changed since the last call."""
        folder, names = self._run.folder, _files(self._run.folder)
        lines: list[Appended] = []
        documents: dict[str, str] = {}
        sent: dict[str, _Sent] = {}
        grown = _line_files(folder, names)
        for name, content in grown.items():
            before = self._sent.get(name, _sent(b""))
            start = before.size if _sent(content[: before.size]) == before else 0
            if len(content) > start or before.size > len(content):
                text = content[start:].decode(errors="replace")
                lines.append(Appended(file=name, offset=start, text=text))
                sent[name] = _sent(content)
        plain = [name for name in names if not name.endswith(_LINES)]
        removed = sorted(self._there.difference(plain))
        changed = [name for name in plain if self._stamps.get(name) != _stamp(folder / name)]
        stamps: dict[str, tuple[int, int]] = {}
        if changed or ends:
            self._check_held()
        for name in changed:
            stamps[name] = _stamp(folder / name)
            content = (folder / name).read_bytes()
            found = hashlib.sha256(content).hexdigest()
            if self._sent.get(name) == _Sent(-1, found):
                continue
            self._store.put(name, content)
            sent[name] = _Sent(-1, found)
            if not _DRAWN.fullmatch(name):
                documents[name] = found
        if ends:
            for name, content in grown.items():
                self._store.put(name, content)
        if lines or documents or removed or ends:
            self._append(
                Entry(
                    format=1,
                    driver=self._token,
                    owner=self._owner,
                    lines=lines,
                    documents=documents,
                    removed=removed,
                    ends=ends,
                )
            )
        for name in removed:  # one that comes back is new
            del self._sent[name]
            self._stamps.pop(name, None)
        self._sent.update(sent)
        self._there = {name for name in plain if not _DRAWN.fullmatch(name)}
        self._stamps.update(stamps)

    def _append(self, entry: Entry) -> None:
        """Add an entry to the journal.

        Raises:
            RunFolderError: If another driver has added one there.
        """
        content = entry.model_dump_json().encode()
        while not self._store.create(name := _entry_name(self._next), content):
            found = self._store.read(name)
            if found is None or self._entry(found, name).driver != self._token:
                raise self._taken(name)
            # Written before, by a call whose answer was lost. What it added is added again: an
            # offset says what stays.
            self._next += 1
            if found == content:
                return
        self._next += 1

    def _check_held(self) -> None:
        name = _entry_name(self._next)
        found = self._store.read(name)
        if found is not None and self._entry(found, name).driver != self._token:
            raise self._taken(name)

    def _entry(self, content: bytes, name: str) -> Entry:
        return parse_stored(content, Entry, where=f"{self._run.url}/{name}")

    def _taken(self, name: str) -> RunFolderError:
        found = self._store.read(name)
        by = "unknown" if found is None else self._entry(found, name).owner
        return RunFolderError(
            f"{self._run.url}: another process took the run over; got process {by}. Its results "
            f"count from there on; those of this process that were not stored are in "
            f"{self._run.folder}."
        )

    def _beat(self) -> None:
        self._check_held()
        self._beats += 1
        beat = Beat(driver=self._token, count=self._beats, at=utc_now())
        self._store.put("heartbeat.json", beat.model_dump_json().encode())
        self._beat_at = time.monotonic()

    def _is_former(self, state: State) -> bool:
        """Whether a process of this machine left it, which then cannot live: we have its lock."""
        try:
            token = (self._run.folder / _DRIVER_FILE).read_text(encoding="utf-8")
        except OSError:
            return False
        return state.last is not None and state.last.driver == token

    def _await_stale(self, state: State, owner: str) -> None:
        """Wait until the run's driver must be dead: by its heartbeat, and by no clock but ours.

        Raises:
            RunFolderError: If it lives.
        """
        said = f"another process is running this study; got process {owner}"
        self._say(f"{self._run.url}: {said}; waiting up to {STALE_S:g} s for a sign of life")
        before = self._store.read("heartbeat.json")
        until = time.monotonic() + STALE_S
        while time.monotonic() < until:
            time.sleep(min(SYNC_EVERY_S, STALE_S / 4))
            moved = self._store.read("heartbeat.json") != before
            if moved or self._store.read(_entry_name(state.next)) is not None:
                raise RunFolderError(f"{self._run.url}: {said}. Wait for it, or stop it.")
        self._say(f"process {owner} gave no sign of life: its run is taken over")


def join_url(results: str, name: str) -> str:
    """Return the URL of a named run below a URL of results."""
    return f"{results.rstrip('/')}/{name}"


def remote_runs(results: str) -> list[str]:
    """Return the URLs of the runs right below a URL of results.

    Raises:
        UserError: If there is none.
        ObjectStoreError: If the store cannot be asked.
    """
    store = open_store(results)
    found = [
        join_url(store.url, name) for name in store.names("") if store.names(f"{name}/journal")
    ]
    if not found:
        raise UserError(f"{results}: must hold runs of `safemerge search`; got none.")
    return found


def _entry_name(number: int) -> str:
    return f"journal/{number:08d}.json"


def _files(folder: Path) -> list[str]:
    """Return the names of the files of a run that are stored."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if path.is_file() and not path.is_symlink() and not hidden and not _LOCAL.match(name):
            found.append(name)
    return found


def _line_files(folder: Path, names: list[str]) -> dict[str, bytes]:
    """Return the whole lines of files that grow; records and digests as of one moment."""
    found = {}
    grown = [name for name in names if name.endswith(_LINES)]
    for name in sorted(grown, key=lambda name: name.endswith(".jsonl"), reverse=True):
        path = folder / name
        with ExitStack() as stack:
            if path.suffix == ".jsonl":
                stack.enter_context(locked_file(path, os.O_RDONLY, exclusive=False))
                digests = path.with_suffix(".digest")
                if digests.exists():
                    found[digests.relative_to(folder).as_posix()] = _whole(digests.read_bytes())
            if name not in found:
                found[name] = _whole(path.read_bytes())
    return found


def _whole(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def _sent(content: bytes | bytearray) -> _Sent:
    return _Sent(len(content), hashlib.sha256(content).hexdigest())


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    with disk_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)


def _relation(folder: Path, state: State) -> Literal["behind", "ahead", "other"]:
    """Say whether a folder holds what a journal does, or less; or more; or something else."""
    there: dict[str, bytes | bytearray] = {
        name: content for name, content in state.lines.items() if name.endswith(".jsonl")
    }
    here: dict[str, bytes | bytearray] = {
        name: content
        for name, content in _line_files(folder, _files(folder)).items()
        if name.endswith(".jsonl")
    }
    for name in _ESSENTIAL:
        path, known = folder / name, state.documents.get(name)
        if path.exists() and known is None:
            there, here = there | {name: b""}, here | {name: b" "}
        elif path.exists() and known != hashlib.sha256(path.read_bytes()).hexdigest():
            return "other"
    pairs = [(here.get(name, b""), there.get(name, b"")) for name in {*here, *there}]
    if all(one == other[: len(one)] for one, other in pairs):
        return "behind"
    return "ahead" if all(one[: len(other)] == other for one, other in pairs) else "other"
