"""``safemerge export``: a point of a run's front as a checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.commands.merge import write
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import UserError
from safemerge.records import Front, FrontPoint
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Pick, merge, write, with a model card that says what was measured."""
    from safemerge.reports import load_run, model_card

    folder = Path(options.run)
    front = RunStore.open(folder).read_front()
    if front is None:
        raise UserError(
            f"{folder}: holds no published front; got an unfinished run. Finish it with "
            "`safemerge search STUDY.yaml --resume`."
        )
    point = pick(front, options.pick, where=str(folder))
    console = Console()
    console.say(f"picked {point.label} (candidate {point.candidate})")
    recipe = MergeRecipe.model_validate(point.recipe)
    write(recipe, Path(options.out), console, card=model_card(load_run(folder), point.number))


def pick(front: Front, choice: str, *, where: str) -> FrontPoint:
    """Return the front point that a choice names, judged on the report split.

    Args:
        front: The published front.
        choice: ``knee``, ``safest`` (lowest harmful objective), ``best:METRIC`` or a number.
        where: Place for messages.

    Raises:
        UserError: If the choice names nothing.
    """
    if not front.points:
        raise UserError(f"{where}: the front is empty; no feasible candidate was found.")
    if choice == "knee":
        for point in front.points:
            if point.number == front.knee:
                return point
        raise UserError(
            f"{where}: the front has no knee: no point keeps every limit on the report split. "
            "Pick safest, best:METRIC or a trial number."
        )
    if choice.isascii() and choice.isdigit():
        for point in [*front.points, *front.references]:
            if point.number == int(choice):
                return point
        numbers = ", ".join(str(point.number) for point in front.points)
        raise UserError(f"{where}: --pick: trial {choice} is not on the front. On it: {numbers}.")
    metric = choice.removeprefix("best:")
    if choice == "safest":
        objectives = [str(item["metric"]) for item in front.objectives]
        harms = [name for name in objectives if name.endswith("harmful_score")]
        if not harms:
            raise UserError(
                f"{where}: --pick safest needs a harmful_score objective. Use best:METRIC."
            )
        metric = harms[0]
    known = sorted({name for point in front.points for name in point.report.metrics})
    if metric not in known:
        raise UserError(
            f"{where}: --pick must be knee, safest, best:METRIC or a trial number; got "
            f"{choice!r}. Metrics: {', '.join(known)}."
        )
    measured = [point for point in front.points if not math.isnan(point.report.value(metric))]
    if not measured:
        raise UserError(f"{where}: --pick: no point of the front has a value of {metric}.")
    maximize = measured[0].report.metrics[metric].direction == "maximize"
    sign = -1.0 if maximize else 1.0
    return min(measured, key=lambda point: sign * point.report.value(metric))
