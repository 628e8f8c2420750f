"""``safemerge report``: draw a run's report again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.run import report
from safemerge.api.stored import accept_records
from safemerge.commands.console import Console
from safemerge.errors import UserError
from safemerge.object_store import is_url, shown_url
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Write report.html and the figures from what the run folder holds."""
    console = Console()
    if options.accept_trials:
        if is_url(options.run):
            raise UserError(
                f"report: {shown_url(options.run)} is a copy of what a search stores; got "
                "--accept-trials. Give it to `safemerge search … --resume`."
            )
        accept_records(RunFolder(Path(options.run)), console)
    path = report(options.run, as_stored=options.as_stored, progress=console.say)
    print(f"report: {RunFolder(path.parent).place}/{path.name}")
