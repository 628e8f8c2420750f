"""Files that survive being killed: whole replacement, locked appends, torn last lines."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from safemerge.errors import PreflightError, RunFolderError, SafemergeError, StudyError

Model = TypeVar("Model", bound=BaseModel)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST)
_CHUNK = 1 << 16


class TornLine(NamedTuple):
    """An unfinished last line that a killed process left behind, moved aside."""

    line: int
    """Its line number, from 1."""
    num_bytes: int
    moved_to: Path


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full, read-only or missing disk into a message for the user.

    Args:
        folder: The folder that is written to, named in messages.

    Yields:
        Nothing.

    Raises:
        PreflightError: If the disk is full, writing is not allowed, or a file is in the way.
        StudyError: If the folder is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise PreflightError(
                f"{folder}: the disk is full; got {_free_mib(folder)} MiB free. "
                "Free space, then resume."
            ) from error
        if error.errno in _DENIED:
            raise PreflightError(
                f"{folder}: cannot be written; got {error.strerror}. Choose another folder."
            ) from error
        if error.errno in _IN_THE_WAY:
            raise PreflightError(
                f"{folder}: must be a folder; got a file at {error.filename}. "
                "Choose another folder."
            ) from error
        if error.errno == errno.ENOENT:
            raise StudyError(
                f"{folder}: no such folder; got {error.filename!r} missing. "
                "Was it moved while the run was going?"
            ) from error
        raise


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole: a reader sees the old content or the new, never a part.

    Args:
        path: The file; its folder must exist.
        content: Text (stored as UTF-8) or bytes.

    Raises:
        OSError: As the system reports it; the old file is then untouched.
    """
    with _written_beside(path, content.encode() if isinstance(content, str) else content) as whole:
        whole.replace(path)
    sync_folder(path.parent)


def create_file(path: Path, content: bytes) -> bool:
    """Write a file whole unless it exists; of several writers one succeeds, on any machine.

    Args:
        path: The file; its folder must exist.
        content: Bytes.

    Returns:
        Whether the file was created; False if it existed, which is then untouched.

    Raises:
        OSError: As the system reports it; no file is then created.
    """
    with _written_beside(path, content) as whole:
        # NOTE: a link, as a file that is opened exclusively would be seen before it is whole.
        try:
            path.hardlink_to(whole)
        except FileExistsError:
            return False
    sync_folder(path.parent)
    return True


@contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write a temporary file, on disk for the block; its name is no other writer's."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            write_all(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink()


class Appended(NamedTuple):
    """A line that was appended and is on disk, its file still locked."""

    handle: int
    """The file, open for reading and writing."""
    start: int
    """Offset of the line's first byte."""
    torn: TornLine | None
    """The torn line that was moved aside before, if there was one."""


@contextmanager
def appended_line(
    path: Path, line: bytes, *, is_whole: Callable[[bytes], bool]
) -> Iterator[Appended]:
    """Append one line under an exclusive lock, wait until it is on disk, and keep the lock.

    If the write or the block fails, the file is cut back to what it was. A torn last line that
    another process left is moved aside first; see `restore_last_line`.

    Args:
        path: The file, created if missing.
        line: The line without its newline.
        is_whole: Tells whether an unfinished last line is a whole record all the same.

    Yields:
        The line's place.

    Raises:
        OSError: As the system reports it.
    """
    with locked_file(path, os.O_RDWR | os.O_CREAT) as handle:
        torn = _restore(handle, path, is_whole)
        size = os.lseek(handle, 0, os.SEEK_END)
        try:
            write_all(handle, line + b"\n")
            os.fsync(handle)
            yield Appended(handle, size, torn)
        except (OSError, SafemergeError):
            with suppress(OSError):
                os.ftruncate(handle, size)
            raise
        if size == 0:
            sync_folder(path.parent)


def append_line(path: Path, line: bytes, *, is_whole: Callable[[bytes], bool]) -> TornLine | None:
    """Append one line and wait until it is on disk; see `appended_line`.

    Returns:
        The torn line that was moved aside, if there was one.

    Raises:
        OSError: As the system reports it.
    """
    with appended_line(path, line, is_whole=is_whole) as appended:
        return appended.torn


def read_lines(path: Path) -> list[bytes]:
    """Return the finished lines of a file, under a shared lock; [] if it is missing."""
    try:
        with locked_file(path, os.O_RDONLY, exclusive=False) as handle:
            content = read_from(handle, 0)
    except FileNotFoundError:
        return []
    return content.split(b"\n")[:-1]


def parse_stored(
    text: str | bytes,
    model: type[Model],
    *,
    where: str,
    advice: str | None = None,
) -> Model:
    """Return a record that was stored as JSON.

    Args:
        text: The JSON.
        model: What it holds.
        where: The file, and the line if it has several, for messages.
        advice: What to do, for messages.

    Raises:
        RunFolderError: If it is damaged, or has a key that this version does not know; names the
            first place.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        advice = advice or "Restore the file from a copy."
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise RunFolderError(
                f"{where}: must hold keys that this version of safemerge knows; got '{place}'. It "
                "was written by another version: use that one, or begin a new run."
            ) from None
        raise RunFolderError(
            f"{where}: damaged{f' at {place}' if place else ''}; got {first['msg']!r}. {advice}"
        ) from None


def is_stored(line: bytes, model: type[BaseModel]) -> bool:
    """Tell whether a line holds a whole record."""
    try:
        model.model_validate_json(line)
    except ValidationError:
        return False
    return True


def restore_last_line(path: Path, *, is_whole: Callable[[bytes], bool]) -> TornLine | None:
    """Move an unfinished last line to ``<name>.torn``, or finish it if it is whole.

    A writer that is killed leaves a last line without its newline. Nothing is dropped: the
    bytes are appended to the side file before they are cut off.

    Args:
        path: The file; a missing one is fine.
        is_whole: Tells whether the unfinished line is a whole record all the same.

    Returns:
        What was moved, if anything.

    Raises:
        OSError: As the system reports it.
    """
    try:
        with locked_file(path, os.O_RDONLY, exclusive=False) as handle:
            if _ends_whole(handle):
                return None
        with locked_file(path, os.O_RDWR) as handle:
            return _restore(handle, path, is_whole)
    except FileNotFoundError:
        return None


@contextmanager
def locked_file(path: Path, flags: int, *, exclusive: bool = True) -> Iterator[int]:
    """Open a file and hold a whole-file lock on it, shared between threads and processes.

    Args:
        path: The file.
        flags: As for `os.open`.
        exclusive: Whether other holders are kept out; else only exclusive ones are.

    Yields:
        The file descriptor.
    """
    handle = os.open(path, flags, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield handle
    finally:
        os.close(handle)


def write_all(handle: int, payload: bytes) -> None:
    """Write every byte: `os.write` may stop early."""
    view = memoryview(payload)
    while view:
        view = view[os.write(handle, view) :]


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_from(handle: int, offset: int) -> bytes:
    """Return a file's bytes from an offset to its end."""
    chunks = []
    while chunk := os.pread(handle, _CHUNK, offset):
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def free_name(path: Path) -> Path:
    """Return a path beside a file to keep it under: ``<name>.old-1``, or the next one free."""
    number = 1
    while (kept := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    return kept


def _restore(handle: int, path: Path, is_whole: Callable[[bytes], bool]) -> TornLine | None:
    if _ends_whole(handle):
        return None
    content = read_from(handle, 0)
    start = content.rfind(b"\n") + 1
    tail = content[start:]
    if is_whole(tail):
        os.lseek(handle, 0, os.SEEK_END)
        write_all(handle, b"\n")
        os.fsync(handle)
        return None
    aside = path.with_name(f"{path.name}.torn")
    side = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(side, tail + b"\n")
        os.fsync(side)
    finally:
        os.close(side)
    os.ftruncate(handle, start)
    os.fsync(handle)
    return TornLine(line=content.count(b"\n") + 1, num_bytes=len(tail), moved_to=aside)


def _ends_whole(handle: int) -> bool:
    size = os.lseek(handle, 0, os.SEEK_END)
    return size == 0 or os.pread(handle, 1, size - 1) == b"\n"


def _free_mib(folder: Path) -> int:
    with suppress(OSError):
        return shutil.disk_usage(folder).free >> 20
    return 0
