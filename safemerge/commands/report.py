"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.run import report
from safemerge.api.stored import accept_records
from safemerge.commands.console import Console
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    console = Console()
    if options.accept_trials:
        accept_records(RunFolder(Path(options.run)), console)
    path = report(options.run, as_stored=options.as_stored, progress=console.say)
    print(f"report: {path}")
