"""``safemerge optimize`` and `safemerge.optimize`: a merge's coefficients by data."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from safemerge.api.declared import Recipe, StrPath, declared
from safemerge.api.folder import check_disk, run_folder
from safemerge.api.progress import Progress, Say
from safemerge.commands.console import Console
from safemerge.config.base import digest
from safemerge.config.coefficient import leaves
from safemerge.config.recipe import MergeRecipe
from safemerge.config.source import SeenData
from safemerge.errors import UserError
from safemerge.files import disk_errors, replace_file
from safemerge.optimize.spec import OptimizeSpec
from safemerge.provenance import current_provenance

if TYPE_CHECKING:
    import argparse

SPEC_FILE, RECIPE_FILE, TABLE_FILE = "optimize.json", "recipe.yaml", "table.md"
UNCOUNTED = ("name", "workers", "checkpoint_every", "rows_at_once")
"""Settings that do not change the result, up to rounding: a resumed run may change them."""


class OptimizedRecipe(NamedTuple):
    """A recipe whose coefficients were found by data."""

    recipe: Recipe
    """What `safemerge.merge`, `safemerge.evaluate` and a search's ``start`` take."""
    path: Path
    """Its file, ``recipe.yaml`` in the run's folder."""
    losses: dict[str, dict[str, float]]
    """Mean loss, in nats, lower is better: ``safety`` and ``expert`` by model or merge."""
    folder: Path
    """The run's folder."""


def optimize(
    optimization: StrPath | Mapping[str, Any],
    *,
    results: StrPath = "results",
    resume: bool = False,
    progress: Say | None = None,
    again: str = "safemerge.optimize(..., resume=True)",
) -> OptimizedRecipe:
    """Find a merge's coefficients by data, on Ray Train or Ray Serve; write a recipe.

    Args:
        optimization: A file (``safemerge schema optimize``), or its keys as a mapping.
        results: Folder of run folders.
        resume: Continue the run in the folder, if there is one, from its last checkpoint.
        progress: Called with lines of progress, e.g. `print`; the log if left out.
        again: How the run is continued, for messages.

    Raises:
        UserError: If declaration, data or models are wrong, or the folder holds a run and
            `resume` is not given.
        TrainingError: If training failed.
    """
    lines = Progress(progress)
    spec = declared(optimization, OptimizeSpec, kind="optimize")
    folder = run_folder(results, spec.name)
    if (folder / SPEC_FILE).exists() and not resume:
        raise UserError(
            f"{folder}: holds a run of this optimisation already. Continue it with `{again}`, or "
            "remove the folder, or rename the optimisation."
        )
    check_disk(folder)
    try:
        result = _optimize(spec, folder, lines)
    except KeyboardInterrupt:
        lines.say(f"interrupted; go on from the last checkpoint: {again}")
        raise
    return _finish(spec, folder, result)


def run(options: argparse.Namespace) -> None:
    """Optimise, write the recipe and the table."""
    console = Console()
    where = [] if options.results == "results" else ["--results", options.results]
    found = optimize(
        options.spec,
        results=options.results,
        resume=options.resume,
        progress=console.say,
        again=shlex.join(["safemerge", "optimize", options.spec, *where, "--resume"]),
    )
    console.plain()
    console.plain((found.folder / TABLE_FILE).read_text(encoding="utf-8"))
    path = found.path
    console.say(f"recipe: {path} (candidate {found.recipe.digest})")
    console.say(f"next: safemerge merge {path} OUT_DIR")
    console.say(f"      safemerge evaluate STUDY.yaml --recipe {path}")
    console.say(f"      safemerge search STUDY.yaml --start {path}")


def _optimize(spec: OptimizeSpec, folder: Path, progress: Progress) -> dict[str, Any]:
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.contamination import seen_data
    from safemerge.distributed.ingredient import Ingredients
    from safemerge.optimize.on_ray import (
        RESULT_FILE,
        check_optimization,
        check_rows,
        run_optimization,
    )

    check_rows(spec)
    with ExitStack() as stack:
        ingredients = Ingredients(say=progress.say, on_step=progress.training_step, stack=stack)
        resolved = spec.with_checkpoints(ingredients.resolve(spec.checkpoints))
        progress.say(f"checking {len(spec.checkpoints)} checkpoints and the data")
        cut_rows: list[str] = []
        table = check_optimization(resolved, say=cut_rows.append)
        for words in cut_rows:
            progress.say(f"{spec.name}: {words}")
        sets = {
            f"{spec.name}.{key}.{index}": item
            for key, declared in (("safety", spec.safety), ("expert", spec.expert))
            for index, item in enumerate(declared)
        }
        _claim(resolved, folder, seen=seen_data(spec.checkpoints, sets), cut_rows=cut_rows)
        if (folder / RESULT_FILE).exists():
            progress.say("finished already")
            found: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
            return found
        count = int(table.active.sum())
        what = "" if spec.optimizer.name == "lm_cocktail" else f", {count} coefficients"
        where = "Ray Train" if spec.evaluator is None else f"{spec.evaluator.engine} on Ray Serve"
        progress.say(f"{spec.name}: {spec.optimizer.name}{what} ({where})")
        stack.enter_context(ray_cluster())
        return run_optimization(
            resolved,
            folder,
            on_step=lambda step, steps: progress.stage_step(
                spec.name, step.step, steps, step.told
            ),
        )


def _claim(
    spec: OptimizeSpec,
    folder: Path,
    *,
    seen: Sequence[SeenData] = (),
    cut_rows: Sequence[str] = (),
) -> None:
    """Write what is optimised into the run folder, or check that it is the same as there."""
    settings = {key: value for key, value in spec.resolved().items() if key not in UNCOUNTED}
    path = folder / SPEC_FILE
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["digest"] != digest(settings):
            raise UserError(
                f"{folder}: must hold a run of the same settings, data and models; got digest "
                f"{before['digest']}, now {digest(settings)}. Rename the optimisation, or remove "
                "the folder."
            )
        rows = [item.rows for item in seen]
        if [item["rows"] for item in before.get("seen", [])] not in ([], rows):
            raise UserError(
                f"{folder}: must hold a run on the same rows; got data that changed since. Put "
                "them back, or remove the folder, or rename the optimisation."
            )
        return
    document = {
        "digest": digest(settings),
        "spec": spec.resolved(),
        "seen": [item.resolved() for item in seen],
        "cut_rows": list(cut_rows),
        "provenance": current_provenance().model_dump(mode="json"),
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(document, indent=2) + "\n")


def _finish(spec: OptimizeSpec, folder: Path, result: Mapping[str, Any]) -> OptimizedRecipe:
    told = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8")).get("seen", [])
    recipe = MergeRecipe.model_validate_json(
        json.dumps({**result["recipe"], "seen": told}), by_alias=True
    )
    text = "\n".join([*loss_table(spec, result["losses"]), "", *weight_table(recipe)]) + "\n"
    document = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    with disk_errors(folder):
        replace_file(folder / RECIPE_FILE, document)
        replace_file(folder / TABLE_FILE, text)
    losses = {name: dict(found) for name, found in result["losses"].items()}
    return OptimizedRecipe(Recipe.of(recipe), folder / RECIPE_FILE, losses, folder)


def loss_table(spec: OptimizeSpec, losses: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return lines of a table of losses on both sets, lower is better, in nats.

    Args:
        spec: The optimisation.
        losses: ``safety`` and ``expert`` by model or merge.
    """
    what = "entropy" if spec.objective == "entropy" else "cross-entropy"
    rows = [
        [name, *(f"{found[key]:.3f}" for key in ("safety", "expert")), _total(spec, found)]
        for name, found in losses.items()
    ]
    return _table([f"{what} of", "safety", "expert", f"safety + {spec.alpha:g} expert"], rows)


def _total(spec: OptimizeSpec, found: Mapping[str, float]) -> str:
    return f"{found['safety'] + spec.alpha * found['expert']:.3f}"


def weight_table(recipe: MergeRecipe) -> list[str]:
    """Return lines of a table of a recipe's weights: mean, least and largest by model."""
    rows = []
    for field, number in recipe.method.coefficients():
        values = list(leaves(number))
        numbers = (sum(values) / len(values), min(values), max(values))
        rows.append([field, *(f"{value:.3f}" for value in numbers)])
    return _table([recipe.method.name, "mean", "least", "largest"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def text(line: Sequence[str]) -> str:
        first = line[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [text(head), rule, *map(text, rows)]
