"""Temporary folders that outlive no command: what a killed process left, the next one removes.

A folder is marked by a lock file that its owner holds: the system drops the lock when a process
ends, however it ends, so that nothing of a living one is taken, in another container too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safemerge.files import locked_file

LOCK_FILE = "safemerge.lock"


@contextmanager
def scratch_folder(what: str) -> Iterator[Path]:
    """Give a temporary folder that is removed at the end.

    Args:
        what: What it is for, a part of its name.
    """
    prefix = f"safemerge-{what}-"
    remove_abandoned(Path(tempfile.gettempdir()), prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as name, owned(Path(name)):
        yield Path(name)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Mark a folder as in use by this process, for the length of a block."""
    unmarked = folder / f"{LOCK_FILE}.new"
    with locked_file(unmarked, os.O_RDWR | os.O_CREAT):
        unmarked.rename(folder / LOCK_FILE)  # locked at any moment that others see it
        yield


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove this user's marked folders that no living process owns.

    Args:
        parent: Where they are.
        prefix: How their names begin; links are left alone.
    """
    for folder in parent.glob(f"{prefix}*"):
        if _is_abandoned(folder):
            remove_marked(folder)


def remove_marked(folder: Path) -> None:
    """Remove a marked folder as far as that can be done, its mark last."""
    with suppress(OSError):  # another process may be at it too
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK_FILE:
                path.unlink(missing_ok=True)
        if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
            shutil.rmtree(folder)


def _is_abandoned(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        handle = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False  # not marked, or gone by now
    with ExitStack() as stack:
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
