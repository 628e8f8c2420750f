"""``safemerge evaluate``: one candidate on a study's suites."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console, result_lines
from safemerge.commands.study import load_study, resolve_study
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import load_document
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.study import FloatRange, SearchSpace, StudySpec
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Score a recipe over the study's models, or a checkpoint as it is."""
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.evaluator import Evaluator

    console = Console()
    spec = load_study(options.study)
    if options.model is not None:
        candidate = CheckpointRef(name="candidate", path=str(Path(options.model).resolve()))
        spec = _only_model(spec, candidate)
    recipe = None
    if options.recipe is not None:
        recipe = load_document(options.recipe, MergeRecipe)
        recipe = recipe.located(Path(options.recipe).resolve().parent)
        spec = _over(spec, recipe.base, recipe.experts)
    single = spec.evaluator.model_copy(update={"min_replicas": 1, "max_replicas": 1})
    spec = spec.model_copy(update={"evaluator": single})
    with ray_cluster():
        resolved = resolve_study(spec, console)
        chosen = _recipe(resolved, recipe)
        console.say("starting an evaluator replica (about 30 to 60 s)")
        with Evaluator(resolved, app=f"safemerge-evaluate-{spec.name}") as evaluator:
            result = evaluator.score(chosen, options.split)
    console.plain(f"candidate {result.candidate}, {options.split} split")
    for line in result_lines(result):
        console.plain("  " + line)
    if options.json is not None:
        Path(options.json).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
        console.say(f"result: {options.json}")


def _only_model(spec: StudySpec, candidate: CheckpointRef) -> StudySpec:
    return _over(spec, candidate, [candidate.model_copy(update={"name": "same"})])


def _over(spec: StudySpec, base: CheckpointRef, experts: Sequence[CheckpointRef]) -> StudySpec:
    # The study's spaces name its own models: they give way to one that is legal over these.
    space = SearchSpace(
        name="unused",
        method=Linear(name="linear", weights={base.name: 1.0}),
        vary={f"method.weights.{base.name}": FloatRange(low=0.0, high=1.0)},
    )
    return spec.model_copy(update={"base": base, "experts": list(experts), "spaces": [space]})


def _recipe(spec: StudySpec, recipe: MergeRecipe | None) -> MergeRecipe:
    by_name = {ref.name: ref for ref in spec.checkpoints}
    if recipe is None:
        return MergeRecipe(
            base=spec.base,
            experts=spec.experts,
            method=Linear(name="linear", weights={spec.base.name: 1.0}),
            dtype=spec.dtype,
        )
    missing = [ref.name for ref in recipe.checkpoints if ref.name not in by_name]
    if missing:
        raise ConfigError(f"recipe: no such model in the study; got {missing[0]!r}.")
    return recipe.with_checkpoints(by_name)
