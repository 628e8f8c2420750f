"""``safemerge finetune``: user fine-tuning on Ray Train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.api.stage import finetune
from safemerge.commands.console import Console, resume_command, trained_lines

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Train the stage."""
    console = Console()
    trained = finetune(
        options.spec,
        results=options.results,
        resume=options.resume,
        restart=options.restart,
        progress=console.say,
        again=resume_command("finetune", options.spec, options.results),
    )
    for line in trained_lines(trained, "finetune"):
        console.say(line)
