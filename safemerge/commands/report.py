"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

import argparse
from pathlib import Path

from safemerge.reports import write_report


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    print(f"report: {write_report(Path(options.run))}")
