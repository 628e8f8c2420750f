"""``safemerge evaluate``: one candidate on a study's suites."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console, result_lines
from safemerge.commands.stored import check_recipe, stored_study
from safemerge.commands.study import load_study, preflight, resolve_study
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import load_document
from safemerge.config.range import FloatRange
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.study import SearchSpace, StudySpec
from safemerge.config.tokenizer import TokenizerChoice
from safemerge.errors import ConfigError, PreflightError
from safemerge.files import disk_errors, replace_file
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Score a recipe over the study's models, or a checkpoint as it is."""
    console = Console()
    is_run = RunStore(options.study).exists
    spec = stored_study(options.study, console) if is_run else load_study(options.study)
    if options.recipe is not None:
        check_recipe(Path(options.recipe), spec)
    ingredients = spec.all_checkpoints
    if options.json is not None:
        check_parent(Path(options.json))
    if options.model is not None:
        candidate = CheckpointRef(name="candidate", path=str(Path(options.model).resolve()))
        spec = _only_model(spec, candidate)
    recipe = None
    if options.recipe is not None:
        recipe = load_document(options.recipe, MergeRecipe)
        recipe = recipe.located(Path(options.recipe).resolve().parent)
        spec = _over(spec, recipe.base, recipe.experts)
        own = {"vocabulary": recipe.vocabulary, "tokenizer": recipe.tokenizer}
        spec = spec.model_copy(update=own)
    single = spec.evaluator.model_copy(update={"min_replicas": 1, "max_replicas": 1})
    spec = spec.model_copy(update={"evaluator": single})
    # One candidate is not compared with others before it is scored.
    rung = spec.rung
    spec = spec.model_copy(update={"rung": None})

    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.distributed.ingredient import fetch_hub_models

    fetch_hub_models([*ingredients, *spec.all_checkpoints])
    preflight(spec, console)

    if options.split == "report":
        from safemerge.data.rung import check_rung
        from safemerge.data.suite import load_suites
        from safemerge.distributed.contamination import check_report
        from safemerge.distributed.ingredient import fetch_hub_models

        fetch_hub_models([*ingredients, *spec.checkpoints])
        # What the study's own files train is behind its exported merges too.
        report = load_suites(spec)["report"]
        check_report(
            [*ingredients, *spec.checkpoints],
            report,
            seen=recipe.seen if recipe is not None else [],
        )
        if rung is not None:
            check_rung(rung, report)
    with ExitStack() as stack:
        resolved = resolve_study(spec, console, stack=stack)
        chosen = _recipe(resolved, recipe)
        stack.enter_context(ray_cluster())
        console.say("starting an evaluator replica (about 30 to 60 s)")
        with Evaluator(resolved, app=f"safemerge-evaluate-{spec.name}") as evaluator:
            result = evaluator.score(chosen, options.split)
    console.plain(f"candidate {result.candidate}, {options.split} split")
    for line in result_lines(result):
        console.plain("  " + line)
    if options.json is not None:
        path = Path(options.json)
        with disk_errors(path.parent):
            replace_file(path, result.model_dump_json(indent=2) + "\n")
        console.say(f"result: {path}")


def check_parent(path: Path) -> None:
    """Refuse a result file that could not be written, before the candidate is scored.

    Raises:
        PreflightError: If its folder is missing, or it is a folder itself.
    """
    if path.is_dir() or not path.parent.is_dir():
        got = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise PreflightError(f"{path}: --json must name a file; got {got}. Make or change it.")


def _only_model(spec: StudySpec, candidate: CheckpointRef) -> StudySpec:
    return _over(spec, candidate, [candidate.model_copy(update={"name": "same"})])


def _over(spec: StudySpec, base: CheckpointRef, experts: Sequence[CheckpointRef]) -> StudySpec:
    # The study's spaces name its own models: they give way to one that is legal over these.
    space = SearchSpace(
        name="unused",
        method=Linear(name="linear", weights={base.name: 1.0}),
        vary={f"method.weights.{base.name}": FloatRange(low=0.0, high=1.0)},
    )
    return spec.model_copy(
        update={
            "base": base,
            "experts": list(experts),
            "spaces": [space],
            "vocabulary": "refuse",
            "tokenizer": TokenizerChoice(),
        }
    )


def _recipe(spec: StudySpec, recipe: MergeRecipe | None) -> MergeRecipe:
    by_name = {ref.name: ref for ref in spec.checkpoints}
    if recipe is None:
        return MergeRecipe(
            base=spec.base,
            experts=spec.experts,
            method=Linear(name="linear", weights={spec.base.name: 1.0}),
            dtype=spec.dtype,
            vocabulary=spec.vocabulary,
            tokenizer=spec.tokenizer,
        )
    missing = [ref.name for ref in recipe.checkpoints if ref.name not in by_name]
    if missing:
        raise ConfigError(f"recipe: no such model in the study; got {missing[0]!r}.")
    return recipe.with_checkpoints(by_name)
