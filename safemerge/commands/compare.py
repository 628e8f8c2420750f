"""``safemerge compare``: runs side by side."""

from __future__ import annotations

import json
import shutil
import sys
from typing import TYPE_CHECKING

from safemerge.api.compare import compare

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Print what differs between runs, and write the page if it is asked for."""
    compared = compare(options.runs, output=options.output)
    if options.json:
        print(json.dumps(compared.resolved(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from safemerge.reports.compared_text import compared_lines, compared_tables

    width = max(80, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 80
    print("\n".join(compared_lines(compared, width=width)))
    console = Console(width=width)
    for table in compared_tables(compared):
        console.print()
        console.print(table)
    if options.output is not None:
        print(f"page: {options.output}")
