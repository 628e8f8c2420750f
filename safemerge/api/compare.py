"""Runs side by side: values, and the page that shows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.declared import StrPath
from safemerge.api.place import local_folder
from safemerge.api.run import Run
from safemerge.files import disk_errors, replace_file

if TYPE_CHECKING:
    from safemerge.reports.compared import RunsCompared


def compare(runs: Sequence[Run | StrPath], *, output: StrPath | None = None) -> RunsCompared:
    """Lay runs side by side: did the new expert help, which method, which λ.

    Numbers are compared where every run asked the same prompts and judged alike; suites that
    differ are named and left out.

    Args:
        runs: Two to eight runs, their folders or URLs; the first is the baseline.
        output: File for the page, e.g. ``compare.html``; none is written if left out.

    Returns:
        Hypervolumes against one reference, knees and common candidates paired (Holm over all
        pairs), settings and suites that differ; ``resolved()`` gives it as JSON-ready values.

    Raises:
        UserError: If a folder holds no run, or there are too few or too many.
        ObjectStoreError: If the store of a URL cannot be asked.
        StudyError: If a file of a run is damaged.
        PreflightError: If the page cannot be written.
    """
    from safemerge.reports.compared import compare_runs
    from safemerge.reports.run import load_run

    folders = [run.folder if isinstance(run, Run) else local_folder(run) for run in runs]
    compared = compare_runs([load_run(folder) for folder in folders])
    if output is not None:
        from safemerge.reports.compared_page import render_comparison

        path = Path(os.fspath(output))
        content = render_comparison(compared)
        with disk_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
    return compared
