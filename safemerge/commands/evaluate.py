"""``safemerge evaluate``: one candidate on a study's suites."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.evaluate import evaluate
from safemerge.commands.console import Console, result_lines
from safemerge.errors import PreflightError
from safemerge.files import disk_errors, replace_file

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Score a recipe over the study's models, or a checkpoint as it is."""
    console = Console()
    if options.json is not None:
        check_parent(Path(options.json))
    result = evaluate(
        options.study,
        recipe=options.recipe,
        model=options.model,
        split=options.split,
        progress=console.say,
    )
    console.plain(f"candidate {result.candidate}, {options.split} split")
    for line in result_lines(result):
        console.plain("  " + line)
    if options.json is not None:
        path = Path(options.json)
        with disk_errors(path.parent):
            replace_file(path, result.model_dump_json(indent=2) + "\n")
        console.say(f"result: {path}")


def check_parent(path: Path) -> None:
    """Refuse a result file that could not be written, before the candidate is scored.

    Raises:
        PreflightError: If its folder is missing, or it is a folder itself.
    """
    if path.is_dir() or not path.parent.is_dir():
        got = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise PreflightError(f"{path}: --json must name a file; got {got}. Make or change it.")
