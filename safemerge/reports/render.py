"""Reading a run's folder and writing its report into it."""

from __future__ import annotations

from pathlib import Path

from safemerge.files import disk_errors, replace_file
from safemerge.reports.figure import write_figures
from safemerge.reports.html import render_html
from safemerge.reports.run import load_run


def write_report(run_folder: str | Path) -> Path:
    """Draw a run's report and figures, from what its folder holds now.

    Usable at any time: the page says if the run is unfinished, has no feasible point, or has
    nothing but failed trials.

    Args:
        run_folder: E.g. ``results/demo``.

    Returns:
        Path of ``report.html``; ``figures/*.png`` lie beside it. Both are replaced whole.

    Raises:
        UserError: If the folder holds no run.
        StudyError: If a file of the run is damaged.
        PreflightError: If the folder cannot be written.
    """
    run = load_run(run_folder)
    path = run.folder / "report.html"
    content = render_html(run)
    with disk_errors(run.folder):
        replace_file(path, content)
    write_figures(run, run.folder / "figures")
    return path
