"""The base of every declared thing: strict, frozen, no unknown keys, no NaN."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

DIGEST_LENGTH = 16
"""Hex characters kept of a SHA-256 digest: 64 bits, unique far beyond any study's size."""


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
