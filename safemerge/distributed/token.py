"""The token by which Ray tells its user from others: a file that nobody else may read.

Ray makes ``~/.ray/auth_token`` with whatever rights the umask leaves, most often 0644, and reads a
file of any rights. Whoever has the token may run code as its user.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import NamedTuple

from safemerge.errors import PreflightError

logger = logging.getLogger(__name__)

_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class Token(NamedTuple):
    """What Ray sends to a cluster that asks for a token."""

    token: str
    place: str
    """Where it stands, for messages."""


def find_token() -> Token | None:
    """Return the token that Ray would send; None if there is none."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return Token(given.strip(), "RAY_AUTH_TOKEN")
    path = _path()
    try:
        return Token(path.read_text(encoding="ascii").strip(), str(path))
    except (OSError, UnicodeDecodeError):
        return None


def _path() -> Path:
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path(os.path.expanduser("~")) / ".ray" / "auth_token"


def secure_token(*, make: bool) -> None:
    """See to it that the token's file is this user's alone, before Ray reads it.

    Rights of others are taken away and that is said, as the token may have been read by then.

    Args:
        make: Make the default file if there is none, as Ray would for a local cluster.

    Raises:
        PreflightError: If the file is another user's, or others' rights cannot be taken away.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    path = _path()
    try:
        found = path.stat()
    except FileNotFoundError:
        if make and not named:
            _make(path)
        return
    except OSError:
        return  # Ray says what it lacks
    if found.st_uid != os.geteuid():
        raise PreflightError(
            f"{path}: Ray's token must be a file of yours; got one of user {found.st_uid}. Name "
            "your own in RAY_AUTH_TOKEN_PATH."
        )
    if found.st_mode & _OTHERS:
        try:
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        except OSError as error:
            raise PreflightError(
                f"{path}: Ray's token must be readable by you alone (mode 0600); got mode "
                f"{stat.S_IMODE(found.st_mode):04o}, and: {error.strerror}. Move it to a place "
                "that has rights, and name it in RAY_AUTH_TOKEN_PATH."
            ) from None
        logger.warning(
            "%s: others could read Ray's token (mode %04o); now 0600. On a shared machine, make a "
            "new one: delete the file.",
            path,
            stat.S_IMODE(found.st_mode),
        )


def _make(path: Path) -> None:
    from ray._private.authentication.authentication_token_setup import (
        generate_new_authentication_token,
    )

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IRUSR | stat.S_IWUSR)
    except OSError:
        return  # made meanwhile, or Ray says why it cannot be
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(generate_new_authentication_token())
