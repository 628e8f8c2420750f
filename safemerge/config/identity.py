"""What makes two declared studies the same study, so that a run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.config.checkpoint import CHECKPOINT_SOURCES, CheckpointRef
from safemerge.config.study import StudySpec


class Difference(NamedTuple):
    """The first place where two documents differ."""

    path: str
    stored: str
    given: str


def study_identity(spec: StudySpec, *, other: StudySpec | None = None) -> dict[str, Any]:
    """Return the part of a study that a resumed run must share, as a plain document.

    Args:
        spec: The study.
        other: A study it will be compared with. A checkpoint counts by its fingerprint if
            both have one, else by its reference; without `other`, if `spec` has one.

    Returns:
        What counts of it (see `Identity`), warm starts by their recipes. With `other`, a sampler
        that is left open (``auto``) is the other's. What the study reads is compared by
        `safemerge.config.inputs.input_changes`.
    """
    document = spec.counted()
    if other is not None and spec.sampler.name == "auto":
        document["sampler"]["name"] = other.sampler.name
    if spec.started:
        document["start"] = {start.name: start.recipe.digest for start in spec.started}
    items = [document["base"], *document["experts"], *document.get("trained", ())]
    by_content(items, (other or spec).all_checkpoints)
    # A variant counts by its content, which its folder is named after, before it is trained too.
    for item in document.get("trained", ()):
        if item.get("path") is not None:
            item["path"] = Path(item["path"]).name
            item.pop("statistics", None)  # gathered once the variant is trained
    return document


def by_content(items: Iterable[dict[str, Any]], others: Iterable[CheckpointRef]) -> None:
    """Let documents of checkpoints count by fingerprint, where both sides have one.

    Args:
        items: Documents of `StrictModel.counted`; changed in place.
        others: The checkpoints that they will be compared with.
    """
    known = {ref.name for ref in others if ref.digest is not None}
    for item in items:
        if item.get("statistics", {}).get("digest") is not None:
            item["statistics"] = {"digest": item["statistics"]["digest"]}
        if item["digest"] is not None and item["name"] in known:
            for source in CHECKPOINT_SOURCES:
                item.pop(source, None)
        else:
            del item["digest"]


def first_difference(before: object, now: object, path: str = "") -> Difference | None:
    """Find the first place where two JSON-ready documents differ.

    List members go by their ``name`` where they have one, else by index.

    Args:
        before: The stored document.
        now: The given document.
        path: Dotted path of the two inside a larger document.

    Returns:
        The place with both values as JSON, or None if the documents are equal.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            where = f"{path}.{key}" if path else str(key)
            if key not in now or key not in before:
                return Difference(where, _shown(before, key), _shown(now, key))
            found = first_difference(before[key], now[key], where)
            if found is not None:
                return found
        return None
    if isinstance(before, list) and isinstance(now, list):
        names, given = _member_names(before), _member_names(now)
        if names == given:
            members = zip(names, before, now, strict=True)
            differences = (first_difference(a, b, f"{path}.{name}") for name, a, b in members)
            return next((item for item in differences if item is not None), None)
        if all(isinstance(item, dict) for item in (*before, *now)):
            before, now = names, given
    # NOTE: 1 and 1.0 are the same number in JSON, True and 1 are not the same value.
    if before == now and isinstance(before, bool) == isinstance(now, bool):
        return None
    return Difference(path, _json(before), _json(now))


def _member_names(items: list[Any]) -> list[str]:
    return [
        str(item.get("name", index)) if isinstance(item, dict) else str(index)
        for index, item in enumerate(items)
    ]


def _shown(document: dict[str, Any], key: str) -> str:
    return _json(document[key]) if key in document else "(absent)"


def _json(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
