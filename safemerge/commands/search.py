"""``safemerge search``: the main job."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from typing import TYPE_CHECKING

from safemerge.api.declared import load_study
from safemerge.api.search import check_study, search, with_start_files
from safemerge.commands.console import Console, resume_command
from safemerge.commands.live import LiveView, can_show
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    import argparse

    from safemerge.api.run import Run


def run(options: argparse.Namespace) -> None:
    """Search, publish the front, write the report."""
    is_live = not options.plain and not options.dry_run and can_show()
    console = LiveView() if is_live else Console()
    if options.dry_run:
        study = load_study(options.study)
        study = study.of(with_start_files(study.spec, options.start))
        check_study(study, results=options.results, progress=console.say)
        return
    starts = [word for file in options.start for word in ("--start", file)]
    with console.shown() if isinstance(console, LiveView) else nullcontext():
        found = search(
            options.study,
            results=options.results,
            start=options.start,
            resume=options.resume,
            new_data=options.new_data,
            accept_trials=options.accept_trials,
            progress=console.say,
            watch=console.watch if isinstance(console, LiveView) else None,
            serve_report=options.serve_report,
            again=resume_command("search", options.study, options.results, starts),
        )
    show(found, console)


def show(run: Run, console: Console) -> None:
    """Print a finished run's front, and where its report is."""
    from rich.console import Console as RichConsole

    from safemerge.reports import front_table, load_run

    console.plain()
    width = max(100, shutil.get_terminal_size().columns)
    RichConsole(width=width).print(front_table(load_run(run.folder)))
    place = RunFolder(run.folder).place
    console.say(f"report: {place}/report.html")
    if run.front:
        pick = "knee" if run.knee is not None else run.front[0]["trial"]
        console.say(f"next: safemerge export {place} --pick {pick} OUT_DIR")
