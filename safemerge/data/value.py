"""Values of data as text: what a file says, in the words that it says it in."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any


class WrittenNumber(float):
    """A number of a JSON text that keeps how it is written: ``2.50`` and ``1e5`` stay so."""

    text: str
    """As it stands in the file."""

    def __new__(cls, text: str) -> WrittenNumber:
        """Read a number; see `json.loads` for its form."""
        made = super().__new__(cls, text)
        made.text = str(text)
        return made

    def __str__(self) -> str:
        """Return the text."""
        return self.text


def as_text(value: object) -> str:
    """Return a value as text: itself if it is text, else as JSON writes it.

    Args:
        value: Text, a number, true or false, or lists and mappings of such; dates and other
            scalars of a parquet file are written as Python does.

    Raises:
        ValueError: If the value is null, or bytes, which are no text.
    """
    match value:
        case str():
            return value
        case None:
            raise ValueError("null")
        case bytes() | bytearray():
            raise ValueError("bytes")
        case _:
            return _json(value)


def _json(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case WrittenNumber():
            return value.text
        case str() | int() | float():
            return json.dumps(value, ensure_ascii=False)
        case dict():
            pairs = (f"{_json(str(key))}: {_json(item)}" for key, item in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_json, value)) + "]"
        case _:
            return str(value)


def is_value(value: object, wanted: str | int | bool) -> bool:
    """Tell whether a column's value is the declared one, by what it says and not by its type.

    Args:
        value: Of a row; a CSV file has text alone.
        wanted: Text, a whole number, true or false. ``1`` is the text ``1`` and the number 1.0,
            true is the text ``true`` in any case, never 1.
    """
    if value is None or isinstance(value, bytes | list | dict):
        return False
    text = as_text(value)
    if isinstance(wanted, bool):
        return text.casefold() == as_text(wanted)
    if isinstance(wanted, str):
        return text == wanted
    try:
        return Decimal(text) == wanted
    except InvalidOperation:
        return False


class _TextFormatter(string.Formatter):
    """Fields become text as files write it; a format of a field's own is Python's."""

    def format_field(self, value: Any, format_spec: str) -> str:
        """Return a field's text."""
        return str(format(value, format_spec)) if format_spec else as_text(value)


def filled(template: str, columns: Mapping[str, Any]) -> str:
    """Fill a template's ``{column}`` fields.

    Raises:
        KeyError, IndexError, TypeError, ValueError: If a field does not fit the columns, or a
            value is no text; see `as_text`.
    """
    return _TextFormatter().vformat(template, (), columns)
