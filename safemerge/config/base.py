"""The base of every declared thing: strict, frozen, no unknown keys, no NaN."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import Enum, auto
from typing import Any

from pydantic import BaseModel, ConfigDict

DIGEST_LENGTH = 16
"""Hex characters kept of a SHA-256 digest: 64 bits, unique far beyond any study's size."""


class Identity(Enum):
    """A field's mark: what it means for whether two declarations ask for the same results.

    Written as ``Annotated[int, FREE]``. A field without a mark counts; a new one that must not
    invalidate what exists is marked `LATER`.
    """

    FREE = auto()
    """Does not count: how much, where or how patiently is computed."""
    CONTENT = auto()
    """Counts by the content of what it names, which whoever compares adds."""
    LATER = auto()
    """Counts only where it is not the default: results from before it existed stay valid."""


FREE, CONTENT, LATER = Identity


class StrictModel(BaseModel):
    """A declaration read from YAML or JSON.

    Unknown keys, wrong types (no coercion), NaN and infinities are refused; instances are
    frozen. Files are validated as JSON, so that integers are accepted for floats and lists
    for tuples, as JSON allows.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        populate_by_name=True,
        ser_json_inf_nan="constants",
    )

    def resolved(self) -> dict[str, Any]:
        """Return every field with defaults filled in, as JSON-ready values, by YAML key."""
        return self.model_dump(mode="json", by_alias=True)

    def counted(self) -> dict[str, Any]:
        """Return `resolved` with only what its results depend on, by each field's `Identity`."""
        found: dict[str, Any] = _counted(self, self.resolved())
        return found


def _counted(value: object, document: Any) -> Any:
    """Leave out of a value's document the fields that do not count."""
    if isinstance(value, StrictModel) and isinstance(document, dict):
        for name, field in type(value).model_fields.items():
            key = field.serialization_alias or field.alias or name
            if key not in document:
                continue
            mark = next((item for item in field.metadata if isinstance(item, Identity)), None)
            given = getattr(value, name)
            default = field.get_default(call_default_factory=True, validated_data={})
            if mark in (FREE, CONTENT) or (mark is LATER and given == default):
                del document[key]
            else:
                document[key] = _counted(given, document[key])
    elif isinstance(value, Mapping) and isinstance(document, dict):
        for key in value.keys() & document.keys():
            document[key] = _counted(value[key], document[key])
    elif isinstance(value, (list, tuple)) and isinstance(document, list):
        return [_counted(one, other) for one, other in zip(value, document, strict=True)]
    return document


def digest(value: object) -> str:
    """Return a short SHA-256 hex digest of a JSON-ready value.

    Key order does not matter; float formatting is Python's shortest round-trip form.

    Args:
        value: Anything `json.dumps` accepts (dicts, lists, strings, numbers, None).

    Returns:
        Sixteen hexadecimal characters.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]
