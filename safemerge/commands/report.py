"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.cell_store import CellStore
from safemerge.commands.console import Console
from safemerge.commands.stored import accept_trials, check_stored
from safemerge.reports import write_report, write_robustness_report
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    folder = Path(options.run)
    if RunStore(folder).exists:
        console = Console()
        if options.accept_trials:
            accept_trials(RunStore(folder), console)
        check_stored(folder, console, as_stored=options.as_stored)
    write = write_robustness_report if CellStore(folder).exists else write_report
    print(f"report: {write(folder)}")
