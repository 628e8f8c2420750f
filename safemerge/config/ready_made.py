"""Suites that ship with the package: well-known tasks with their prompts and scoring."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

from safemerge.config.document import read_yaml
from safemerge.config.problems import did_you_mean

FOLDER = Path(__file__).resolve().parents[1] / "tasks"
"""One YAML file a suite, named after it."""


@functools.cache
def ready_made_names() -> list[str]:
    """Return the names that ``use:`` takes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@functools.cache
def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = read_yaml(FOLDER / f"{name}.yaml")
    return document


def with_ready_made(document: Any) -> Any:
    """Return a suite's document with its ready-made suite filled in.

    Mappings are merged key by key, the document's own values before the ready-made ones, save
    that a mapping of another ``kind`` replaces the whole of it.

    Args:
        document: A suite as plain values; anything without ``use`` comes back as it is.

    Returns:
        The whole suite, without ``use``; the input is not changed.

    Raises:
        ValueError: If there is no suite of that name.
    """
    if not isinstance(document, dict) or "use" not in document:
        return document
    name = document["use"]
    known = ready_made_names()
    if name not in known:
        advice = did_you_mean(str(name), known)
        raise ValueError(f"use: no such ready-made suite; got {name!r}. {advice}")
    own = {key: value for key, value in document.items() if key != "use"}
    return _merged(copy.deepcopy(_document(name)), own)


def _merged(given: Any, own: Any) -> Any:
    if not isinstance(given, dict) or not isinstance(own, dict):
        return own
    if "kind" in own and own["kind"] != given.get("kind"):
        return own
    return {
        **given,
        **{key: _merged(given[key], own[key]) if key in given else own[key] for key in own},
    }
