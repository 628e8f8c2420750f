"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.commands.stored import accept_records, check_stored
from safemerge.config.program import PROGRAMS, load_attribute
from safemerge.reports import write_report
from safemerge.run_folder import RunFolder
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    folder = Path(options.run)
    console = Console()
    if options.accept_trials:
        accept_records(RunFolder(folder), console)
    if RunStore(folder).exists:
        check_stored(folder, console, as_stored=options.as_stored)
    draws = [load_attribute(program.report) for program in PROGRAMS.values() if program.report]
    drawn = next((path for draw in draws if (path := draw(folder)) is not None), None)
    print(f"report: {drawn or write_report(folder)}")
