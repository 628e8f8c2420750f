"""A checkpoint's folder that is whole or absent, on a disk with enough space."""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from safemerge.errors import PreflightError, UserError

_SPARE_BYTES = 64 * 2**20
_LOCK_SUFFIX = ".lock"


def free_place(out_dir: Path | str, *, inputs: Iterable[Path | str] = ()) -> Path:
    """Return the absolute path of a folder to write.

    Args:
        out_dir: Folder that is missing, or empty.
        inputs: Folders that are read, in which it must not be.

    Returns:
        Its absolute path.

    Raises:
        UserError: If it is a file, a folder that is not empty, in a folder that is read, or no
            folder can be there.
        PreflightError: If its folder cannot be written.
    """
    try:
        return _free_place(Path(out_dir).expanduser().absolute(), inputs)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(" from ")[0].rstrip(".")
        raise UserError(
            f"output folder '{str(out_dir)[:80]}': must be a place where a folder can be made; "
            f"got: {reason}. Choose another folder."
        ) from None


def _free_place(out: Path, inputs: Iterable[Path | str]) -> Path:
    place = out.resolve()
    for folder in inputs:
        if Path(folder).resolve() in (place, *place.parents):
            raise UserError(
                f"{out}: the output folder must not be in a folder that is read; got one in "
                f"{folder}. Choose another folder."
            )
    there = next(folder for folder in place.parents if folder.exists())
    if not there.is_dir():
        raise UserError(f"{out}: must be in a folder; got a file at {there}. Choose another.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PreflightError(
            f"{out}: must be a place that can be written; got no permission in {there}. Choose "
            "another folder."
        )
    if out.is_dir():
        if any(out.iterdir()):
            raise UserError(
                f"{out}: the output folder must be missing or empty; got a folder with files. "
                f"Choose another folder."
            )
    elif out.exists() or out.is_symlink():
        raise UserError(f"{out}: the output must be a folder; got a file. Choose another folder.")
    return out


@contextmanager
def whole_folder(out: Path, *, num_bytes: int) -> Iterator[Path]:
    """Give a temporary folder beside `out` that is renamed to it at the end.

    After an error, an interrupt included, the temporary folder is removed. A process that is
    killed leaves it; the next one that writes `out` removes it, known by a lock that no living
    process holds.

    Args:
        out: What `free_place` returned; parents are made.
        num_bytes: Bytes that will be written, to about 64 MiB.

    Yields:
        The temporary folder.

    Raises:
        PreflightError: If the disk has too little space, before or while writing, or the
            folder cannot be written.
    """
    needed = num_bytes + _SPARE_BYTES
    with ExitStack() as stack:
        with _disk_errors(out, needed):
            out.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(out)
            free = shutil.disk_usage(out.parent).free
            if free < needed:
                raise PreflightError(_no_space(out, needed, f"{free / 2**30:.2f} GiB free"))
            partial = stack.enter_context(_partial_folder(out))
        with _disk_errors(out, needed):
            yield partial
            partial.rename(out)


@contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """Make a folder of a new name beside `out`, and hold its lock as long as it may be there."""
    lock, handle = _new_lock(out)
    partial = lock.with_suffix("")
    try:
        partial.mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(handle)


def _new_lock(out: Path) -> tuple[Path, int]:
    """Return a new lock file, held before the folder that it is for is made."""
    while True:
        lock = out.parent / f"{_prefix(out)}{secrets.token_hex(8)}{_LOCK_SUFFIX}"
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        # NOTE: where the file system has no locks, nobody can take this one away either.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Another process may have seen it before it was held, and removed it as abandoned.
        if lock.exists():
            return lock, handle
        os.close(handle)


def _remove_abandoned(out: Path) -> None:
    """Remove what killed processes left of `out`: folders whose lock can be taken."""
    for lock in out.parent.iterdir():
        if not (lock.name.startswith(_prefix(out)) and lock.name.endswith(_LOCK_SUFFIX)):
            continue
        with suppress(OSError):
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink()
            finally:
                os.close(handle)


def _prefix(out: Path) -> str:
    return f".{out.name}.partial-"


def _no_space(out: Path, needed: int, got: str) -> str:
    return (
        f"{out}: the merged checkpoint needs {needed / 2**30:.2f} GiB of disk space; got {got}. "
        f"Free space or choose another disk."
    )


@contextmanager
def _disk_errors(out: Path, needed: int) -> Iterator[None]:
    """Turn a full or unwritable disk into a PreflightError that says what was needed."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        # NOTE: safetensors reports the operating system's error by text only.
        if full or re.search(r"[Nn]o space left|[Qq]uota exceeded", str(error)):
            raise PreflightError(_no_space(out, needed, "a full disk while writing")) from error
        raise PreflightError(
            f"{out}: must be a place that can be written; got: {error}. Choose another folder."
        ) from error
