"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.cell_store import CellStore
from safemerge.reports import write_report, write_robustness_report

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    folder = Path(options.run)
    write = write_robustness_report if CellStore(folder).exists else write_report
    print(f"report: {write(folder)}")
