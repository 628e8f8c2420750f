"""Settings in which declarations differ, by dotted path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import CHECKPOINT_SOURCES

ABSENT = "(absent)"
_MISSING: Any = object()
_SHOWN = 80
"""Characters shown of a value."""


class Setting(StrictModel):
    """One setting that differs."""

    setting: str
    """Dotted path; members of lists go by their names."""
    values: list[str]
    """As JSON, one a declaration in their order; ``(absent)`` where it is not there."""


def differing_settings(declared: Sequence[StrictModel]) -> list[Setting]:
    """Find every setting in which declarations of one kind differ.

    Where checkpoints have one fingerprint, where they lie is no difference.

    Args:
        declared: Two or more.

    Returns:
        The settings, in the order of the declaration.
    """
    return list(_differing([item.resolved() for item in declared], ""))


def _differing(values: list[Any], path: str) -> Iterator[Setting]:
    documents = [_named(value) for value in values]
    if all(isinstance(value, dict) for value in documents):
        skipped = set(CHECKPOINT_SOURCES) if _is_one_checkpoint(documents) else set()
        for key in dict.fromkeys(key for document in documents for key in document):
            if key not in skipped:
                members = [document.get(key, _MISSING) for document in documents]
                yield from _differing(members, f"{path}.{key}" if path else str(key))
    elif any(not _same(values[0], value) for value in values[1:]):
        yield Setting(setting=path, values=[_shown(value) for value in values])


def _is_one_checkpoint(documents: list[dict[str, Any]]) -> bool:
    digests = {document.get("digest") for document in documents}
    return len(digests) == 1 and None not in digests


def _named(value: Any) -> Any:
    """Return a list of named members as a table."""
    if not isinstance(value, list) or not value:
        return value
    names = [
        item.get("name", item.get("metric")) if isinstance(item, dict) else None for item in value
    ]
    if None in names or len(set(names)) < len(names):
        return value
    return dict(zip(names, value, strict=True))


def _same(left: Any, right: Any) -> bool:
    # NOTE: 1 and 1.0 are the same number in JSON, True and 1 are not the same value.
    return left is right or (left == right and isinstance(left, bool) == isinstance(right, bool))


def _shown(value: Any) -> str:
    text = ABSENT if value is _MISSING else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
