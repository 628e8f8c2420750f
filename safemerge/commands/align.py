"""``safemerge align``: an alignment stage on Ray Train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.api.stage import align
from safemerge.commands.console import Console, resume_command, trained_lines

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Train the stage."""
    console = Console()
    trained = align(
        options.spec,
        results=options.results,
        resume=options.resume,
        restart=options.restart,
        progress=console.say,
        again=resume_command("align", options.spec, options.results),
    )
    for line in trained_lines(trained, "align"):
        console.say(line)
