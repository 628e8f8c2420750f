"""``safemerge methods``: the tables of merge methods, safety operators, alignment, optimisers."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Any

from safemerge.api.methods import methods, program_tables
from safemerge.commands.scoring_table import scoring_lines
from safemerge.config.problems import did_you_mean
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    import argparse

_SHARED = ("name", "on", "experts")
"""Fields that the short table leaves out."""

_MERGING = ("method", "step")
"""Kinds of rows whose table shows what is worth searching; that of others shows defaults."""

_HEADINGS = {
    "method": "Merge methods",
    "step": "Safety operators (steps)",
    "alignment": "Alignment methods (align files)",
}
_KINDS = {
    "method": "merge method",
    "step": "safety operator (step)",
    "alignment": "alignment method (align files)",
}


def run(options: argparse.Namespace) -> None:
    """Print the tables, one row in full, or either as JSON."""
    rows = methods()
    if options.name is not None:
        rows = [row for row in rows if row["name"] == options.name]
        if not rows:
            known = [row["name"] for row in methods()]
            raise ConfigError(
                "methods: must be a known merge method, safety operator, alignment method or "
                f"optimiser; got {options.name!r}. {did_you_mean(options.name, known)}"
            )
    if options.json:
        print(json.dumps(rows if options.name is None else rows[0], indent=2))
    elif options.name is not None:
        print(_full(rows[0]))
    else:
        print("\n".join((*scoring_lines(), _table(rows))))


def _short(row: dict[str, Any]) -> str:
    parts = []
    for item in row["parameters"]:
        if item["name"].startswith("harmful."):
            continue
        if row["kind"] not in _MERGING and not item["required"]:
            parts.append(f"{item['name']} {item['allowed']} ({_shown(item['default'])})")
        elif item["name"] not in _SHARED:
            limits = item["usual"] or (item["allowed"] if "|" not in item["allowed"] else "")
            choices = "|".join(item["allowed"].split(" | "))
            simple = item["usual"] is None and isinstance(item["default"], str)
            parts.append(f"{item['name']} {choices if simple else limits}".strip())
    return ", ".join(parts)


def _shown(default: object) -> str:
    if isinstance(default, str):
        return default
    if default is None:
        return "none"
    return f"{default:g}" if isinstance(default, float) else json.dumps(default)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = []
    width = max(len(row["name"]) for row in rows) + 2
    headings = {table.kind: table.heading for table in program_tables()}
    for kind, heading in (_HEADINGS | headings).items():
        lines += [heading, ""]
        for row in rows:
            if row["kind"] == kind:
                lines.append(f"  {row['name']:<{width}}{row['summary']}")
                indent = " " * (width + 2)
                text = "; ".join(filter(None, (_short(row), _works_on(row), row["citation"])))
                lines += textwrap.wrap(
                    text,
                    98,
                    initial_indent=indent,
                    subsequent_indent=indent,
                    break_on_hyphens=False,
                )
        lines.append("")
    lines.append("In brackets after an alignment method's or optimiser's setting: its default.")
    lines.append("'safemerge methods NAME' says more: each parameter, and whose variant it is.")
    return "\n".join(lines)


def _works_on(row: dict[str, Any], vectors: str = "") -> str:
    if row["kind"] == "alignment":
        needed = any(item["name"] == "harmful.data" for item in row["parameters"])
        return "alignment and harmful data" if needed else "alignment data"
    return f"{vectors}from the base" if row["uses_base"] else "whole weights"


def _full(row: dict[str, Any]) -> str:
    labels = _KINDS | {table.kind: table.label for table in program_tables()}
    kind = labels[row["kind"]]
    lines = [f"{row['name']}: {row['title']}, {kind}", "", row["summary"], ""]
    lines += [f"works on  {_works_on(row, 'task vectors ')}", f"source    {row['citation']}"]
    lines += [f"          {row['url']}"] if row["url"] else []
    wrapped = textwrap.wrap(row["variant"] or "as its package has it", 86)
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
