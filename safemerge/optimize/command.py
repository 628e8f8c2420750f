"""``safemerge optimize`` and `safemerge.optimize`: a merge's coefficients by data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from pydantic import Field

from safemerge.api.declared import Recipe, StrPath, declared
from safemerge.api.progress import Progress, Say
from safemerge.commands.console import Console, resume_command
from safemerge.config.base import StrictModel, digest
from safemerge.config.coefficient import leaves
from safemerge.config.identity import by_content, first_difference
from safemerge.config.recipe import MergeRecipe
from safemerge.config.source import SeenData
from safemerge.errors import RunFolderError, UserError
from safemerge.optimize.spec import OptimizeSpec
from safemerge.provenance import Provenance, current_provenance
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    import argparse

RECIPE_FILE, TABLE_FILE = "recipe.yaml", "table.md"


class OptimizationDocument(StrictModel):
    """What ``optimize.json`` holds."""

    digest: str
    """Digest of the settings that the result depends on."""
    spec: OptimizeSpec
    """The optimisation, with its checkpoints resolved."""
    seen: list[SeenData] = Field(default_factory=list)
    """The data that it reads, by content."""
    cut_rows: list[str] = Field(default_factory=list)
    """Sets with rows that are cut at `max_tokens`, in words."""
    provenance: Provenance


class OptimizationFolder(RunFolder):
    """The folder of an optimisation."""

    document_file = "optimize.json"
    noun = "optimisation"

    def document(self) -> OptimizationDocument:
        """Read what is optimised.

        Raises:
            StudyError: If it is missing or damaged.
        """
        return self.read_document(OptimizationDocument)

    def claim(
        self, spec: OptimizeSpec, *, seen: Sequence[SeenData] = (), cut_rows: Sequence[str] = ()
    ) -> None:
        """Write down what is optimised, or check that it is the same as before.

        Args:
            spec: The optimisation, with its checkpoints resolved.
            seen: The data that it reads, by content.
            cut_rows: Sets with rows that are cut, in words.

        Raises:
            UserError: If the folder holds a run of other settings, data or models.
        """
        if not self.exists:
            document = OptimizationDocument(
                digest=digest(_identity(spec, spec)),
                spec=spec,
                seen=list(seen),
                cut_rows=list(cut_rows),
                provenance=current_provenance(),
            )
            self.write_json(self.document_file, document)
            return
        before = self.document()
        found = first_difference(_identity(before.spec, spec), _identity(spec, before.spec))
        if found is not None:
            raise UserError(
                f"{self.folder}: must hold a run of the same settings, data and models; got "
                f"{found.path}: {found.stored} before, {found.given} now. Rename the "
                "optimisation, or remove the folder."
            )
        if [item.rows for item in before.seen] not in ([], [item.rows for item in seen]):
            raise UserError(
                f"{self.folder}: must hold a run on the same rows; got data that changed since. "
                "Restore them, or remove the folder, or rename the optimisation."
            )


def _identity(spec: OptimizeSpec, other: OptimizeSpec) -> dict[str, Any]:
    """What a resumed run must share; checkpoints by fingerprint where both have one."""
    document = spec.counted()
    by_content([document["base"], *document["experts"]], other.checkpoints)
    return document


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
    store = OptimizationFolder.under(results, spec.name)
    if not resume:
        store.refuse_existing(again=again)
    store.check_disk()
    try:
        with ExitStack() as stack:
            result = _optimize(spec, store, lines, stack)
            return _finish(spec, store, result)
    except KeyboardInterrupt:
        lines.say(f"interrupted; resume from the last checkpoint: {again}")
        raise


def run(options: argparse.Namespace) -> None:
    """Optimise, write the recipe and the table."""
    console = Console()
    found = optimize(
        options.spec,
        results=options.results,
        resume=options.resume,
        progress=console.say,
        again=resume_command("optimize", options.spec, options.results),
    )
    console.plain()
    console.plain((found.folder / TABLE_FILE).read_text(encoding="utf-8"))
    path = found.path
    console.say(f"recipe: {path} (candidate {found.recipe.digest})")
    console.say(f"next: safemerge merge {path} OUT_DIR")
    console.say(f"      safemerge evaluate STUDY.yaml --recipe {path}")
    console.say(f"      safemerge search STUDY.yaml --start {path}")


def _optimize(
    spec: OptimizeSpec, store: OptimizationFolder, progress: Progress, stack: ExitStack
) -> dict[str, Any]:
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
    stack.enter_context(store.locked())
    store.claim(resolved, seen=seen_data(spec.checkpoints, sets), cut_rows=cut_rows)
    if (store.folder / RESULT_FILE).exists():
        progress.say("finished already")
        return _stored_result(store.folder / RESULT_FILE)
    count = int(table.active.sum())
    what = "" if spec.optimizer.name == "lm_cocktail" else f", {count} coefficients"
    where = "Ray Train" if spec.evaluator is None else f"{spec.evaluator.engine} on Ray Serve"
    progress.say(f"{spec.name}: {spec.optimizer.name}{what} ({where})")
    stack.enter_context(ray_cluster())
    return run_optimization(
        resolved,
        store.folder,
        on_step=lambda step, steps: progress.stage_step(spec.name, step.step, steps, step.summary),
    )


def _finish(
    spec: OptimizeSpec, store: OptimizationFolder, result: Mapping[str, Any]
) -> OptimizedRecipe:
    recipe = MergeRecipe.model_validate_json(json.dumps(result["recipe"]), by_alias=True)
    recipe = recipe.model_copy(update={"seen": store.document().seen})
    text = "\n".join([*loss_table(spec, result["losses"]), "", *weight_table(recipe)]) + "\n"
    document = yaml.safe_dump(recipe.resolved(), sort_keys=False, allow_unicode=True)
    path = store.write(RECIPE_FILE, document)
    store.write(TABLE_FILE, text)
    losses = {name: dict(found) for name, found in result["losses"].items()}
    return OptimizedRecipe(Recipe.of(recipe), path, losses, store.folder)


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


def _stored_result(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunFolderError(
            f"{path}: damaged; got {error}. Delete the file and run again with --resume."
        ) from None
    return found
