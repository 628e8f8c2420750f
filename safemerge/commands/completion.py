"""``safemerge completion``: the script by which a shell completes commands and options."""

from __future__ import annotations

import argparse
from typing import Any


def run(options: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    parser = options.parser
    _mark_places(parser, files=shtab.FILE, folders=shtab.DIRECTORY)
    print(shtab.complete(parser, options.shell))


def _mark_places(parser: argparse.ArgumentParser, *, files: Any, folders: Any) -> None:
    """Say of which arguments a file or folder is the value, as their METAVARs tell."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_places(command, files=files, folders=folders)
            continue
        shown = str(action.metavar or "")
        if "DIR" in shown:
            action.complete = folders  # type: ignore[attr-defined]
        elif any(part in shown for part in ("FILE", ".yaml", "PATH", "PLACE")):
            action.complete = files  # type: ignore[attr-defined]
