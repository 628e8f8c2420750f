"""Writing a point of a run's front as a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from safemerge.api.declared import StrPath
from safemerge.api.merge import MergedCheckpoint, check_out, write
from safemerge.api.pick import defects, pick_point, published_front
from safemerge.api.progress import Progress, Say
from safemerge.api.run import Run
from safemerge.api.stored import check_stored
from safemerge.config.recipe import MergeRecipe
from safemerge.reports.run import load_run as read_run


def export(
    run: Run | StrPath,
    pick: str | int,
    out: StrPath,
    *,
    as_stored: bool = False,
    progress: Say | None = None,
) -> MergedCheckpoint:
    """Write a point of a run's front as a checkpoint, with a card that says what was measured.

    Args:
        run: A run, or its folder.
        pick: ``knee``, ``safest`` or ``best:METRIC``, all among the points that keep every limit
            on the report split; or any trial of the front by its number.
        out: Folder to write; must be missing or empty.
        as_stored: Do so although data or models are no longer those that the run was made with.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Raises:
        UserError: If there is no such run, front or point, or the folder cannot be written.
        ChangedRunError: If data or models changed; names all of it.
        MergeError: If the merge cannot be computed.
    """
    from safemerge.reports import model_card

    folder = run.folder if isinstance(run, Run) else Path(os.fspath(run))
    stored = read_run(folder)
    spec, front = stored.spec, published_front(stored)
    point = pick_point(front, str(pick), spec=spec, where=str(folder))
    lines = Progress(progress)
    check_stored(folder, lines, as_stored=as_stored)
    lines.say(f"picked {point.label} (candidate {point.candidate})")
    for problem in defects(spec, point.report):
        lines.say(f"note: on the report split, {problem}")
    recipe = MergeRecipe.model_validate(point.recipe)
    place = check_out(out, recipe)
    return write(recipe, place, lines, card=model_card(stored, point.number))
