"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.reports import write_report

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    print(f"report: {write_report(Path(options.run))}")
