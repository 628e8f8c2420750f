"""Files as they were when they were opened: what changed since, and digests of their bytes."""

import hashlib
import os
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from safemerge.cache import read_entry, write_entry
from safemerge.config.base import digest
from safemerge.errors import CheckpointChangedError, CheckpointError

_SETTLED_NS = 25_000_000
"""Age after which a change gives a file another time: kernels count in ticks of 1 to 10 ms."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class FileIdentity(NamedTuple):
    """What the file system says of a file; every change of the bytes changes some of it.

    A copy that keeps size and modification time has another inode, and an edit that sets the
    modification time back leaves another change time: no program can set that.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        """Return the identity in what `os.stat` or `os.fstat` gave."""
        return cls(
            status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
        )

    def describe_change(self, now: "FileIdentity") -> str:
        """Say in words how a file differs from what it was."""
        if now.size != self.size:
            return f"{now.size} bytes, was {self.size}"
        if (now.inode, now.device) != (self.inode, self.device):
            return f"another file of the same size in its place (inode {now.inode})"
        if now.mtime_ns != self.mtime_ns:
            return f"other bytes of the same size, modified at {_clock(now.mtime_ns)}"
        return (
            f"other bytes of the same size and modification time, changed at "
            f"{_clock(now.ctime_ns)}"
        )


class WatchedFile:
    """A file and its identity when this was made.

    Args:
        path: The file; links are followed.
        identity: Its identity, where it is known from an open handle.

    Raises:
        CheckpointError: If it cannot be read.
    """

    def __init__(self, path: Path, identity: FileIdentity | None = None) -> None:
        self.path = path
        self.identity = identity or _identity(path)
        self._changed: str | None = None

    def difference(self) -> str | None:
        """Say how the file differs from what it was; None if it does not, by its identity."""
        try:
            now = FileIdentity.of(self.path.stat())
        except OSError as error:
            return error.strerror or str(error)
        return None if now == self.identity else self.identity.describe_change(now)

    def check_unchanged(self) -> None:
        """Refuse a file that is not what it was, and from then on always.

        Where only the change time differs, as after chmod or a hard link, the bytes decide, if
        they were digested before.

        Raises:
            CheckpointChangedError: If it changed, is gone, or cannot be read.
        """
        if self._changed is None:
            self._changed = self.difference()
            if self._changed is not None and self._has_the_same_bytes():
                self._changed = None
        if self._changed is not None:
            raise CheckpointChangedError(
                f"{self.path}: must stay as it was when it was opened; got {self._changed}. "
                f"Put the old file back, or start a new run with this one."
            )

    def _has_the_same_bytes(self) -> bool:
        known = _known_digest(self.identity)
        if known is None:
            return False
        try:
            now = _identity(self.path)
            if now._replace(ctime_ns=self.identity.ctime_ns) != self.identity:
                return False
            if content_digest(self.path) != known:
                return False
        except CheckpointError:
            return False
        self.identity = now
        return True


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, from the cache if the file was digested before.

    Kept under ``cache_dir()/fingerprints`` by identity and by node since its start: elsewhere the
    same identity may be another file's.

    Args:
        path: The file; links are followed.

    Returns:
        Sixty-four hexadecimal characters.

    Raises:
        CheckpointError: If it cannot be read.
        CheckpointChangedError: If it changes while it is read.
        PreflightError: If the cache cannot be written.
    """
    identity = _identity(path)
    known = _known_digest(identity)
    if known is not None:
        return known
    # NOTE: an edit in the same tick would leave every time as it is.
    time.sleep(max(0, _SETTLED_NS - abs(time.time_ns() - identity.ctime_ns)) / 1e9)
    try:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error
    WatchedFile(path, identity).check_unchanged()
    entry = {"file": _document(identity), "sha256": content}
    write_entry("fingerprints", digest(entry["file"]), entry)
    return content


def _known_digest(identity: FileIdentity) -> str | None:
    document = _document(identity)
    entry = read_entry("fingerprints", digest(document))
    if entry is None or entry.get("file") != document:
        return None
    return str(entry["sha256"])


def _document(identity: FileIdentity) -> dict[str, object]:
    return {**identity._asdict(), "node": _node()}


@lru_cache(maxsize=1)
def _node() -> str:
    """The machine since it was started: what inode and device numbers hold for."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return platform.node()


def _identity(path: Path) -> FileIdentity:
    try:
        return FileIdentity.of(path.stat())
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: must be a readable file; got: {error.strerror or error}. "
        f"Check the path and its permissions."
    )


def _clock(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(nanoseconds / 1e9))
