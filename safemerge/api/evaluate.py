"""Scoring one candidate on a study's suites."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.declared import Recipe, StrPath, Study, as_recipe, as_study
from safemerge.api.place import local_folder
from safemerge.api.prepare import preflight, resolve_study
from safemerge.api.progress import Progress, Say
from safemerge.api.run import Run
from safemerge.api.stored import check_recipe, stored_study
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.range import FloatRange
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.study import SearchSpace, StudySpec
from safemerge.config.tokenizer import TokenizerChoice
from safemerge.errors import ConfigError, UserError
from safemerge.records import CandidateResult, Split
from safemerge.store import RunStore

if TYPE_CHECKING:
    from safemerge.config.rung import RungSpec
    from safemerge.data.suite import LoadedSuite


def evaluate(
    study: Study | Run | StrPath,
    *,
    recipe: Recipe | StrPath | None = None,
    model: StrPath | None = None,
    split: Split = "report",
    progress: Say | None = None,
) -> CandidateResult:
    """Score a recipe over its models, or a checkpoint as it is, on a study's suites.

    Joins the Ray cluster that ``RAY_ADDRESS`` names, else starts a local one for the call.

    Args:
        study: Whose suites are asked: a study or its file; or a run or its folder, whose data and
            models must be as they were.
        recipe: A recipe or its file, merged and scored; either it or `model`.
        model: A checkpoint's folder.
        split: Prompts to ask: held out (``report``) or those of the search.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Returns:
        Every metric with n and its 95 % interval; `CandidateResult.value` gives one value.

    Raises:
        UserError: If study, candidate, data or environment is wrong; nothing was started.
        EngineError: If the engine failed.
    """
    if (recipe is None) == (model is None):
        given = "both" if recipe is not None else "neither"
        raise UserError(f"evaluate: needs recipe or model; got {given}. Give one of the two.")
    lines = Progress(progress)
    spec = _asked_study(study, lines)
    found = None
    if recipe is not None:
        given_recipe = as_recipe(recipe)
        if given_recipe.source is not None:
            check_recipe(given_recipe.source, spec)
        if given_recipe.mergekit is not None:
            raise UserError(
                f"{given_recipe.source}: must be a recipe; got a mergekit file, which depends on "
                "its models. Merge it, then evaluate the merged model."
            )
        found = given_recipe.spec
    ingredients = spec.all_checkpoints
    if model is not None:
        path = str(Path(model).resolve())
        spec = _only_model(spec, CheckpointRef(name="candidate", path=path))
    if found is not None:
        spec = over_recipe(spec, found)
    single = spec.evaluator.model_copy(update={"min_replicas": 1, "max_replicas": 1})
    # One candidate is not compared with others before it is scored.
    rung = spec.rung
    spec = spec.model_copy(update={"evaluator": single, "rung": None})

    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.distributed.ingredient import fetch_hub_models

    fetch_hub_models([*ingredients, *spec.all_checkpoints])
    suites = preflight(spec, lines).suites
    if split == "report":
        _check_unseen(spec, suites["report"], ingredients, found, rung)
    with ExitStack() as stack:
        resolved = resolve_study(spec, suites, lines, stack=stack)
        chosen = resolved_recipe(resolved, found)
        stack.enter_context(ray_cluster())
        lines.say("starting an evaluator replica (about 30 to 60 s)")
        with Evaluator(resolved, app=f"safemerge-evaluate-{spec.name}") as evaluator:
            result: CandidateResult = evaluator.score(chosen, split)
    return result


def _asked_study(study: Study | Run | StrPath, lines: Progress) -> StudySpec:
    if isinstance(study, Study):
        return study.spec
    folder = study.folder if isinstance(study, Run) else local_folder(study)
    if RunStore(folder).exists:
        return stored_study(str(folder), lines)
    return as_study(folder).spec


def _check_unseen(
    spec: StudySpec,
    report: Sequence[LoadedSuite],
    ingredients: Sequence[CheckpointRef],
    recipe: MergeRecipe | None,
    rung: RungSpec | None,
) -> None:
    """Refuse report prompts that the candidate was made with.

    What the study's own files train is behind its exported merges too.
    """
    from safemerge.data.rung import check_rung
    from safemerge.distributed.contamination import check_report

    seen = recipe.seen if recipe is not None else []
    check_report([*ingredients, *spec.checkpoints], report, seen=seen)
    if rung is not None:
        check_rung(rung, report)


def _only_model(spec: StudySpec, candidate: CheckpointRef) -> StudySpec:
    return _over(spec, candidate, [candidate.model_copy(update={"name": "same"})])


def over_recipe(spec: StudySpec, recipe: MergeRecipe) -> StudySpec:
    """Return a study over a recipe's own models, with suites and evaluator as they are."""
    own = {"vocabulary": recipe.vocabulary, "tokenizer": recipe.tokenizer}
    return _over(spec, recipe.base, recipe.experts).model_copy(update=own)


def _over(spec: StudySpec, base: CheckpointRef, experts: Sequence[CheckpointRef]) -> StudySpec:
    # The study's spaces name its own models: they are replaced by one that is legal over these.
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


def resolved_recipe(spec: StudySpec, recipe: MergeRecipe | None) -> MergeRecipe:
    """Return a recipe over a resolved study's models; the base as it is for None.

    Raises:
        ConfigError: If the study lacks a model of it.
    """
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
