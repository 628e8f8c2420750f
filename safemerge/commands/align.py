"""``safemerge align``: an alignment stage on Ray Train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.api.stage import align
from safemerge.commands.console import Console, trained_lines

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Train the stage."""
    console = Console()
    trained = align(
        options.spec, results=options.results, resume=options.resume, progress=console.say
    )
    for line in trained_lines(trained, "align"):
        console.say(line)
