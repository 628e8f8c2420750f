"""Where safemerge keeps what it can compute again: fingerprints, scans, unpacked models."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safemerge.errors import PreflightError

CACHE_VARIABLE = "SAFEMERGE_CACHE"
"""Environment variable that names the cache folder."""


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
    folder = Path(named).expanduser() if named else Path.home() / ".cache" / "safemerge"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreflightError(_unwritable(folder, error.strerror or str(error))) from error
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
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
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
        folder.mkdir(exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{key}.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entry, file)
            Path(partial).replace(folder / f"{key}.json")
        except OSError:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise PreflightError(_unwritable(folder, error.strerror or str(error))) from error
