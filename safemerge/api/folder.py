"""A place for the folder of a run, looked for before any work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from safemerge.errors import PreflightError


def run_folder(results: str | os.PathLike[str], name: str) -> Path:
    """Return the folder of a run.

    Args:
        results: As given with ``--results``; ``~`` is a home folder.
        name: Name of the run.

    Raises:
        PreflightError: If no user has that name.
    """
    try:
        return Path(results).expanduser() / name
    except RuntimeError:
        raise PreflightError(
            f"--results: must be a folder; got an unknown user in {str(results)[:80]!r}. Choose "
            "another folder."
        ) from None


def check_disk(folder: Path) -> None:
    """Refuse to start without a place for a run's folder.

    Raises:
        PreflightError: If it cannot be made or written, or less than 100 MB are free there.
    """
    existing = _existing(folder)
    if not existing.is_dir():
        raise PreflightError(
            f"{folder}: the run's folder must be a place that can be written; got a file, "
            f"{existing}. Choose another folder with --results."
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PreflightError(
            f"{folder}: the run's folder must be a place that can be written; got a folder that "
            f"cannot be written, {existing}. Choose another folder with --results."
        )
    free = shutil.disk_usage(existing).free
    if free < 100e6:
        raise PreflightError(
            f"{folder}: needs 100 MB of free space; got {free / 1e6:.0f} MB. Free some, or "
            "choose another folder with --results."
        )


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest above it that exists.

    Raises:
        PreflightError: If no folder can be there.
    """
    try:
        place = folder.resolve()
        folder.exists()  # raises where a name is too long
        broken = next((at for at in (folder, *folder.parents) if at.is_symlink()), None)
        if broken is not None and not broken.exists():
            raise FileNotFoundError(0, f"a link to a place that is not there, {broken}")
        return next(item for item in (place, *place.parents) if item.exists())
    except (OSError, RuntimeError) as error:
        told = getattr(error, "strerror", None) or str(error).split(" from ")[0].rstrip(".")
        raise PreflightError(
            f"{str(folder)[:80]}: must be a place where a folder can be made; got: {told}. Choose "
            "another folder with --results."
        ) from None
