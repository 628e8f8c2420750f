"""The tables of merge methods, safety operators and programs' methods, as plain records."""

from __future__ import annotations

import re
from typing import Any

from safemerge.config.base import StrictModel
from safemerge.config.method import METHOD_SPECS
from safemerge.config.program import PROGRAMS, MethodTable, load_attribute
from safemerge.config.step import STEP_SPECS


def methods() -> list[dict[str, Any]]:
    """Return every method of the core and of the registered programs, as JSON-ready documents.

    Returns:
        Documents with name, kind (``method``, ``step`` or a program's), title, summary,
        uses_base, citation, url, variant and parameters; each parameter with name, description,
        required, default, allowed (its values by the declaration) and usual (the range worth
        searching, or null).
    """
    from safemerge.merge.step import STEPS
    from safemerge.merge.table import METHODS

    documents = []
    for name, spec in METHOD_SPECS.items():
        row = METHODS[name]
        usual = {item.name: item for item in row.parameters}
        parameters = _parameters(spec)
        for parameter in parameters:
            found = usual.get(parameter["name"])
            if found is not None:
                bracket = "[" if found.low_included else "("
                parameter["usual"] = f"{bracket}{found.low:g}, {found.high:g}]"
        documents.append(
            {
                "name": name,
                "kind": "method",
                "title": row.title,
                "summary": _summary(spec),
                "uses_base": row.uses_base,
                "parameters": parameters,
                "citation": row.citation,
                "url": row.url,
                "variant": row.variant,
            }
        )
    for name, step in STEP_SPECS.items():
        step_row = STEPS[name]
        documents.append(
            {
                "name": name,
                "kind": "step",
                "title": step_row.title,
                "summary": _summary(step),
                "uses_base": True,
                "parameters": _parameters(step),
                "citation": step_row.citation,
                "url": step_row.url,
                "variant": step_row.variant,
            }
        )
    for table in program_tables():
        for added in table.rows.values():
            documents.append(
                {
                    "name": added.name,
                    "kind": table.kind,
                    "title": added.title,
                    "summary": added.summary,
                    "uses_base": added.uses_base,
                    "parameters": _parameters(added.spec),
                    "citation": added.citation,
                    "url": added.url,
                    "variant": added.variant,
                }
            )
    return documents


def program_tables() -> list[MethodTable]:
    """Return the tables that registered programs add."""
    paths = [program.method_table for program in PROGRAMS.values()]
    return [load_attribute(path) for path in paths if path is not None]


def _summary(spec: type[StrictModel]) -> str:
    return (spec.__doc__ or "").strip().splitlines()[0]


def _parameters(spec: type[StrictModel]) -> list[dict[str, Any]]:
    schema = spec.model_json_schema(by_alias=True)
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "description": " ".join(str(item.get("description", "")).split()),
            "required": name in required,
            "default": item.get("default"),
            "allowed": _allowed(item),
            "usual": None,
        }
        for name, item in schema["properties"].items()
        if name != "name"
    ]


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
