"""Where a file reference of a declared file leads."""

from __future__ import annotations

from pathlib import Path

from safemerge.errors import ConfigError


def located_path(given: str, folder: Path) -> str:
    """Return a file reference as an absolute path, links resolved; it need not exist.

    Args:
        given: As declared; ``~`` is a home folder.
        folder: Where a relative one is taken from.

    Raises:
        ConfigError: If no file can be there: an unknown user, links in a circle, a NUL, a name
            that is too long.
    """
    try:
        place = (folder / Path(given).expanduser()).resolve()
        place.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).split(" from ")[0].rstrip(".")
        raise ConfigError(
            f"path {given[:80]!r}: must be one that a file can have; got: {reason}. "
            "Check the path."
        ) from None
    return str(place)
