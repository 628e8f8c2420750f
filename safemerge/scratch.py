"""Temporary folders that outlive no command: what a killed process left, the next one removes.

A folder is marked by a lock file that its owner holds: the system drops the lock when a process
ends, however it ends, so that nothing of a living one is taken, in another container too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    with locked_file(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT):
        yield


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove marked folders that no living process owns.

    Args:
        parent: Where they are.
        prefix: How their names begin; links are left alone.
    """
    for folder in parent.glob(f"{prefix}*"):
        if not folder.is_symlink() and _is_abandoned(folder):
            remove_marked(folder)


def remove_marked(folder: Path) -> None:
    """Remove a marked folder as far as that can be done, its mark last."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK_FILE:
            path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDWR)
    except OSError:
        return False  # not marked, or another user's
    with ExitStack() as stack:
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
