"""Where safemerge keeps what it can compute again: fingerprints, scans, unpacked models."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from threading import Lock
from typing import Any

from safemerge.errors import PreflightError

CACHE_VARIABLE = "SAFEMERGE_CACHE"
"""Environment variable that names the cache folder."""

_BLOB_SUFFIX = ".blob"
_DIGEST_BYTES = 32


def cache_dir() -> Path:
    """Return the cache folder, made if it is missing.

    ``$SAFEMERGE_CACHE`` if set, else ``~/.cache/safemerge``. The variable is read at every
    call, so that a test or a job can point it elsewhere.

    Returns:
        An existing folder that this process may write to.

    Raises:
        PreflightError: If the folder cannot be made or written.
    """
    named = os.environ.get(CACHE_VARIABLE)
    folder = Path(named or "~/.cache/safemerge")
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PreflightError(_unwritable(folder, reason)) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PreflightError(_unwritable(folder, "no write permission"))
    return folder


def _unwritable(folder: Path, reason: str) -> str:
    return (
        f"cache folder '{folder}': must be a folder that can be written; got: {reason}. "
        f"Set {CACHE_VARIABLE} to a folder with space and write permission."
    )


def read_entry(kind: str, key: str) -> dict[str, Any] | None:
    """Return a small cached JSON object, or None if there is none or it is unreadable.

    A damaged entry counts as missing: everything in the cache can be computed again.

    Args:
        kind: Sub-folder of the cache.
        key: File name without suffix; letters, digits, ``-`` and ``_``.

    Returns:
        The object as it was written, or None.
    """
    try:
        entry = json.loads((cache_dir() / kind / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def write_entry(kind: str, key: str, entry: dict[str, Any]) -> None:
    """Write a small JSON object into the cache, whole or not at all.

    Written beside its place and renamed, so that readers in other processes never see half
    an entry; of two writers the last one stays.

    Args:
        kind: Sub-folder of the cache.
        key: File name without suffix.
        entry: JSON-ready object.

    Raises:
        PreflightError: If the cache cannot be written.
    """
    folder = cache_dir() / kind
    try:
        _write(folder, key, f"{key}.json", json.dumps(entry).encode())
    except OSError as error:
        raise PreflightError(_unwritable(folder, error.strerror or str(error))) from error


class BlobCache:
    """Bytes by key in a sub-folder of the cache, up to a size; safe to share among threads.

    Each entry carries its SHA-256, so that a damaged one counts as missing, and is removed. Where
    a new entry finds no room, entries that this object has neither read nor kept go, the longest
    unused first; if there are none, the new one is not kept. A user that needs more than
    `max_bytes` again and again, in one order, then finds a part of it each time, where removing
    its own oldest entries would leave it nothing. The cache only saves time: where it cannot be
    written, nothing is kept and nothing is said.

    Args:
        kind: Sub-folder of the cache.
        max_bytes: Size that the entries may have together; each writer that is at work beside
            others may pass it by an eighth.
    """

    def __init__(self, kind: str, max_bytes: int) -> None:
        self._kind = kind
        self._max_bytes = max_bytes
        self._room = 0
        self._used: set[str] = set()
        self._lock = Lock()

    def get(self, key: str) -> bytes | None:
        """Return an entry's bytes, None if there is none or it is damaged.

        Args:
            key: File name without suffix; letters, digits, ``-`` and ``_``.
        """
        path = cache_dir() / self._kind / f"{key}{_BLOB_SUFFIX}"
        try:
            stored = path.read_bytes()
            content = stored[_DIGEST_BYTES:]
            if hashlib.sha256(content).digest() != stored[:_DIGEST_BYTES]:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        with self._lock:
            self._used.add(key)
        return content

    def put(self, key: str, content: bytes) -> None:
        """Keep an entry, whole or not at all, if there is room.

        What is larger than an eighth of all is not kept.

        Args:
            key: File name without suffix.
            content: Any bytes.
        """
        size = len(content) + _DIGEST_BYTES
        if size > self._max_bytes // 8:
            return
        folder = cache_dir() / self._kind
        try:
            with self._lock:
                if size > self._room:
                    self._room = self._made_room(folder)
                if size > self._room:
                    return
                self._room -= size
                self._used.add(key)
            digest = hashlib.sha256(content).digest()
            _write(folder, key, f"{key}{_BLOB_SUFFIX}", digest + content)
        except OSError:
            return

    def _made_room(self, folder: Path) -> int:
        """Remove what is longest unused by others; return the room, an eighth of all at most."""
        found = []
        for path in folder.glob(f"*{_BLOB_SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        wanted = self._max_bytes // 8
        room = self._max_bytes - sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if room >= wanted:
                break
            if path.stem not in self._used:
                path.unlink(missing_ok=True)
                room += size
        return min(room, wanted)


def _write(folder: Path, key: str, name: str, content: bytes) -> None:
    folder.mkdir(exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{key}.", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(partial).replace(folder / name)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise
