"""Places in a nested document by dotted path; list members go by their name."""

from __future__ import annotations

from typing import Any

from safemerge.config.problems import did_you_mean


def set_path(document: Any, path: str, value: Any) -> None:
    """Set a value in a nested document by dotted path; list members go by their name.

    Args:
        document: Nested dicts and lists; changed in place.
        path: E.g. ``method.weights.math`` or ``experts.math.path``.
        value: What to put there.

    Raises:
        KeyError: If the path does not exist in the document.
    """
    *parents, last = path.split(".")
    here = document
    for part in parents:
        here = _member(here, part, path)
    _member(here, last, path)
    here[int(last) if isinstance(here, list) else last] = value


def get_path(document: Any, path: str) -> Any:
    """Return what a nested document holds at a dotted path; list members go by their name.

    Args:
        document: Nested dicts and lists.
        path: E.g. ``method.weights.math`` or ``experts.math.path``.

    Raises:
        KeyError: If the path does not exist in the document.
    """
    here = document
    for part in path.split("."):
        here = _member(here, part, path)
    return here


def _member(here: Any, part: str, path: str) -> Any:
    known: list[str] = []
    if isinstance(here, dict):
        if part in here:
            return here[part]
        known = sorted(map(str, here))
    elif isinstance(here, list):
        named = {item["name"]: item for item in here if isinstance(item, dict) and "name" in item}
        if part in named:
            return named[part]
        if not named and part.isdigit() and int(part) < len(here):
            return here[int(part)]
        known = sorted(named) or [str(place) for place in range(len(here))]
    advice = did_you_mean(part, known) if known else "It goes deeper than the template does."
    raise KeyError(f"no such path in the template; got {path!r}, wrong at {part!r}. {advice}")
