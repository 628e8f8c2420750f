"""Pages that are made from the code, and links of pages that stand in other folders too."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "index.md": ".",
    "cluster.md": "cluster",
    "changelog.md": ".",
    "contributing.md": ".",
    "design/": "design",
}
"""Folder in the repository of pages that are links to files there."""
_LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>(?!https?:|#|mailto:)[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the reference, and the pictures that pages show."""
    import safemerge.programs  # noqa: F401 - kinds of files and methods of programs

    pages = {
        "reference/python.md": _python(),
        "reference/commands.md": _commands(),
        "reference/files.md": _files(),
        "reference/methods.md": _methods(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for picture in sorted(ROOT.glob("results/*-published/*.png")):
        name = f"pictures/{picture.parent.name}-{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into such that are right on the site."""
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    own = str(Path("docs", place).parent)
    folder = next((at for name, at in PLACES.items() if place.startswith(name)), own)
    sources = {
        ROOT / "README.md": "index.md",
        ROOT / "CHANGELOG.md": "changelog.md",
        ROOT / "CONTRIBUTING.md": "contributing.md",
        ROOT / "cluster" / "README.md": "cluster.md",
    }
    up = "../" * place.count("/")

    def moved(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        path = (ROOT / folder / target).resolve()
        shown = path.relative_to(ROOT)
        if match["mark"]:
            return f"![{match['text']}]({up}pictures/{path.parent.name}-{path.name})"
        if path.is_dir() and (path / "README.md").is_file():
            path = path / "README.md"
        if path in sources:
            site = sources[path]
        elif path.is_relative_to(ROOT / "docs") or path.is_relative_to(ROOT / "design"):
            site = str(path.relative_to(ROOT)).removeprefix("docs/")
        else:
            text = match["text"].strip("`")
            return f"`{shown}`" if text == str(shown) else f"{match['text']} (`{shown}`)"
        return f"[{match['text']}]({up}{site}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(moved, markdown)


def _python() -> str:
    import safemerge

    lines = ["# Python", "", "`import safemerge` offers these names; each is loaded on first use."]
    for name in safemerge.__all__:
        module = safemerge._MODULES[name]
        lines += ["", f"::: safemerge.{module}.{name}"]
    return "\n".join(lines) + "\n"


def _commands() -> str:
    from safemerge.cli import build_parser

    parser = build_parser()
    (choices,) = (item.choices for item in parser._actions if isinstance(item.choices, dict))
    lines = ["# Commands", "", "Exit codes: 0 done, 1 the work failed, 2 the input or the"]
    lines += ["environment is wrong, 130 interrupted by Ctrl-C, 143 by SIGTERM."]
    for name, command in choices.items():
        lines += ["", f"## {name}", "", command.description or "", ""]
        lines += ["```text", command.format_help().strip(), "```"]
    return "\n".join(lines) + "\n"


def _files() -> str:
    from safemerge.commands.schema import RUN_FILES, printed_schema
    from safemerge.config.schema import kinds

    lines = [
        "# Files and their keys",
        "",
        "Every key of every kind of file, as `safemerge schema KIND` prints it for editors.",
        "The last three are what a run's folder holds, for programs that read it: `front` is of",
        "`front.json`, `trial` of a line of `trials.jsonl`, `study-document` of `study.json`.",
    ]
    for kind in (*kinds(), *RUN_FILES):
        schema = printed_schema(kind)
        lines += ["", f"## {kind}", "", _text(schema.get("description", "")), ""]
        lines += _table(schema)
        for name, part in sorted(schema.get("$defs", {}).items()):
            if "properties" in part:
                lines += ["", f"### {kind}: {name}", "", _text(part.get("description", "")), ""]
                lines += _table(part)
    return "\n".join(lines) + "\n"


def _table(schema: dict[str, Any]) -> list[str]:
    required = schema.get("required", [])
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, part in schema.get("properties", {}).items():
        default = f"`{part['default']}`" if "default" in part else ""
        default = "required" if key in required else default
        cells = [f"`{key}`", _type(part), default, _text(part.get("description", ""))]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _type(part: dict[str, Any]) -> str:
    if "$ref" in part:
        return str(part["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in part:
            return " or ".join(dict.fromkeys(_type(item) for item in part[key]))
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    kind = str(part.get("type", "any"))
    return f"list of {_type(part['items'])}" if kind == "array" and "items" in part else kind


def _text(text: str) -> str:
    """One line, literals of docstrings as code."""
    return re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("<", "&lt;")


def _methods() -> str:
    import safemerge

    lines = ["# Methods", "", "As `safemerge methods` lists them; `safemerge methods NAME` tells"]
    lines += ["ranges and defaults."]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in safemerge.methods():
        kinds.setdefault(row["kind"], []).append(row)
    for kind, rows in kinds.items():
        lines += ["", f"## {kind}", "", "| name | what it does | source |", "|---|---|---|"]
        for row in rows:
            source = f"[{row['citation']}]({row['url']})" if row.get("url") else row["citation"]
            cells = [f"`{row['name']}`", _text(row["summary"]), source]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
