"""``safemerge methods``: the tables of merge methods, safety operators and optimisers."""

from __future__ import annotations

import json
import re
import textwrap
from typing import TYPE_CHECKING, Any

from safemerge.config.method import method_rows
from safemerge.config.problems import did_you_mean
from safemerge.config.program import PROGRAMS, MethodTable, load_attribute
from safemerge.config.step import STEPS
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from safemerge.config.method_row import MethodRow

_SHARED = ("name", "on", "experts")
"""Fields that the short table leaves out."""

_HEADINGS = {"method": "Merge methods", "step": "Safety operators (steps)"}
_KINDS = {"method": "merge method", "step": "safety operator (step)"}


def run(options: argparse.Namespace) -> None:
    """Print the tables, one row in full, or either as JSON."""
    rows = describe()
    if options.name is not None:
        rows = [row for row in rows if row["name"] == options.name]
        if not rows:
            known = [row["name"] for row in describe()]
            raise ConfigError(
                f"methods: must be a known merge method, safety operator or optimiser; got "
                f"{options.name!r}. {did_you_mean(options.name, known)}"
            )
    if options.json:
        print(json.dumps(rows if options.name is None else rows[0], indent=2))
    elif options.name is not None:
        print(_full(rows[0]))
    else:
        print(_table(rows))


def describe() -> list[dict[str, Any]]:
    """Return every method of the core and of the registered programs, as JSON-ready documents.

    Returns:
        Documents with name, kind (``method``, ``step`` or a program's), title, summary,
        uses_base, citation, url, variant and parameters; each parameter with name, description,
        required, default, allowed (its values by the declaration) and usual (the range worth
        searching, or null).
    """
    rows = [*method_rows().values(), *STEPS.values()]
    rows += [row for table in _program_tables() for row in table.rows.values()]
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


def _program_tables() -> list[MethodTable]:
    paths = [program.method_table for program in PROGRAMS.values()]
    return [load_attribute(path) for path in paths if path is not None]


def _parameters(row: MethodRow) -> list[dict[str, Any]]:
    schema = row.spec.model_json_schema(by_alias=True)
    required = set(schema.get("required", ()))
    usual = row.usual
    return [
        {
            "name": name,
            "description": " ".join(str(item.get("description", "")).split()),
            "required": name in required,
            "default": item.get("default"),
            "allowed": _allowed(item),
            "usual": str(usual[name]) if name in usual else None,
        }
        for name, item in schema["properties"].items()
        if name not in ("name", "plugin")
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


def _short(row: dict[str, Any]) -> str:
    parts = []
    for item in row["parameters"]:
        if row["kind"] not in _KINDS:
            parts.append(f"{item['name']} {item['allowed']} ({_told(item['default'])})")
        elif item["name"] not in _SHARED:
            limits = item["usual"] or (item["allowed"] if "|" not in item["allowed"] else "")
            choices = "|".join(item["allowed"].split(" | "))
            simple = item["usual"] is None and isinstance(item["default"], str)
            parts.append(f"{item['name']} {choices if simple else limits}".strip())
    return ", ".join(parts)


def _told(default: object) -> str:
    if isinstance(default, str):
        return default
    if default is None:
        return "none"
    return f"{default:g}" if isinstance(default, float) else json.dumps(default)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    width = max(len(row["name"]) for row in rows) + 2
    headings = {table.kind: table.heading for table in _program_tables()}
    for kind, heading in (_HEADINGS | headings).items():
        lines += [heading, ""]
        for row in rows:
            if row["kind"] == kind:
                base = "from the base" if row["uses_base"] else "whole weights"
                lines.append(f"  {row['name']:<{width}}{row['summary']}")
                indent = " " * (width + 2)
                text = f"{_short(row)}; {base}; {row['citation']}"
                lines += textwrap.wrap(
                    text,
                    98,
                    initial_indent=indent,
                    subsequent_indent=indent,
                    break_on_hyphens=False,
                )
        lines.append("")
    lines.append("In brackets after an optimiser's setting: its default.")
    lines.append("'safemerge methods NAME' says more: each parameter, and whose variant it is.")
    return "\n".join(lines)


def _full(row: dict[str, Any]) -> str:
    labels = _KINDS | {table.kind: table.label for table in _program_tables()}
    kind = labels[row["kind"]]
    base = "task vectors from the base" if row["uses_base"] else "whole weights"
    lines = [f"{row['name']}: {row['title']}, {kind}", "", row["summary"], ""]
    lines += [f"works on  {base}", f"source    {row['citation']}"]
    lines += [f"          {row['url']}"] if row["url"] else []
    wrapped = textwrap.wrap(row["variant"], 86) or ["as its package has it"]
    lines += [("variant   " if not at else " " * 10) + line for at, line in enumerate(wrapped)]
    lines += ["", "parameters"]
    for item in row["parameters"]:
        default = "required" if item["required"] else f"default {json.dumps(item['default'])}"
        usual = f"; usually {item['usual']}" if item["usual"] else ""
        lines.append(f"  {item['name']}: {item['allowed']} ({default}{usual})")
        if item["description"]:
            lines += textwrap.wrap(
                item["description"], 94, initial_indent="      ", subsequent_indent="      "
            )
    return "\n".join(lines)
