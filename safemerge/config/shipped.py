"""Studies and training files that ship with the package."""

from __future__ import annotations

from pathlib import Path

from safemerge.config.problems import did_you_mean
from safemerge.errors import ConfigError

FOLDER = Path(__file__).resolve().parents[1] / "search_spaces"
"""In a checkout a link to the repository's ``search_spaces/``; in a wheel, the files."""


def shipped_studies() -> list[str]:
    """Return the names of the shipped files for commands, without suffix, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def shipped_file(name: str) -> Path:
    """Return a shipped file.

    Args:
        name: Its path in ``search_spaces/``, e.g. ``demo.yaml``.

    Raises:
        ConfigError: If there is no such file.
    """
    path = FOLDER / name
    if not path.is_file():
        advice = did_you_mean(path.stem, shipped_studies())
        raise ConfigError(f"{name}: no such shipped file. {advice}")
    return path.resolve()
