"""The tables of merge methods, safety operators, alignment and programs' methods, as records."""

from __future__ import annotations

import re
from typing import Any

from safemerge.config.alignment import alignment_rows
from safemerge.config.method import method_rows
from safemerge.config.method_row import MethodRow
from safemerge.config.program import PROGRAMS, MethodTable, load_attribute
from safemerge.config.step import STEPS


def methods() -> list[dict[str, Any]]:
    """Return every method of the core, installed packages and programs, as plain records.

    Returns:
        Documents with name, kind (``method``, ``step``, ``alignment`` or a program's), title,
        summary, uses_base, citation, url, variant and parameters; each parameter with name,
        description, required, default, allowed (its values by the declaration) and usual (the
        range worth searching, or null).
    """
    rows = [*method_rows().values(), *STEPS.values(), *alignment_rows().values()]
    rows += [row for table in program_tables() for row in table.rows.values()]
    return [
        {
            "name": row.name,
            "kind": row.kind,
            "title": row.source.title,
            "summary": row.summary,
            "uses_base": row.uses_base,
            "parameters": _parameters(row),
            "citation": row.source.citation,
            "url": row.source.url,
            "variant": row.source.variant,
        }
        for row in rows
    ]


def program_tables() -> list[MethodTable]:
    """Return the tables that registered programs add."""
    paths = [program.method_table for program in PROGRAMS.values()]
    return [load_attribute(path) for path in paths if path is not None]


def _parameters(row: MethodRow) -> list[dict[str, Any]]:
    usual, found = row.usual, []
    for prefix, spec in row.settings.items():
        schema = spec.model_json_schema(by_alias=True)
        found += [
            {
                "name": f"{prefix}{name}",
                "description": " ".join(str(item.get("description", "")).split()),
                "required": name in schema.get("required", ()),
                "default": item.get("default"),
                "allowed": _allowed(item),
                "usual": str(usual[f"{prefix}{name}"]) if f"{prefix}{name}" in usual else None,
            }
            for name, item in schema.get("properties", {}).items()
            if name not in ("name", "plugin")
        ]
    return found


def _allowed(item: dict[str, Any]) -> str:
    """Say in a few words what a property of a JSON schema may be."""
    if "$ref" in item:
        # One of the declared things, by its name in words.
        return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", item["$ref"].rpartition("/")[2]).lower()
    if "enum" in item:
        return " | ".join(map(str, item["enum"]))
    if "const" in item:
        return str(item["const"])
    if "oneOf" in item:
        # Layer-wise values: a number first, then the same number as anchors and by group.
        return f"{_allowed(item['oneOf'][0])}, layer-wise"
    if "anyOf" in item:
        return " | ".join(_allowed(option) for option in item["anyOf"])
    kind = item.get("type")
    if kind == "object":
        inner = _allowed(item["additionalProperties"])
        return f"by name: {inner}"
    if kind == "array":
        return f"list of {_allowed(item['items'])}"
    words = {"number": "number", "integer": "whole number", "boolean": "true | false"}
    name = words.get(str(kind), "name" if kind == "string" else str(kind))
    return f"{name} {_interval(item)}".strip()


def _interval(item: dict[str, Any]) -> str:
    low = item.get("minimum", item.get("exclusiveMinimum"))
    high = item.get("maximum", item.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    if high is None:
        return f"{'from' if 'minimum' in item else 'above'} {low:g}"
    opening, closing = "[" if "minimum" in item else "(", "]" if "maximum" in item else ")"
    return f"in {opening}{low:g}, {high:g}{closing}"
