"""Warm starts: recipes that a search begins with, and what becomes of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import parse_document
from safemerge.config.problems import did_you_mean
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.config.warm_start import WarmStart
from safemerge.search.nearest import NearestPoint, nearest_point, point_text
from safemerge.search.space import Reference, reference_recipes

_DRAW_MASKS = ("dare_linear", "dare_ties", "della_linear", "della")
"""Methods whose merge depends on the recipe's seed."""


class StartPlan(NamedTuple):
    """What becomes of a warm start."""

    start: WarmStart
    reference: Reference | None
    """The recipe as it is, for comparison; None if a space holds it exactly, or if another
    reference point is the same candidate."""
    point: NearestPoint | None
    """What is sampled for it, first; None if no space comes near, or an earlier warm start has
    the same point."""
    summary: str
    """The two in a line for the terminal."""


def start_problems(spec: StudySpec, recipe: MergeRecipe) -> list[str]:
    """Return what keeps a recipe from starting a study, as far as names and values tell.

    Args:
        spec: The study; its checkpoints need not exist yet.
        recipe: The recipe as its file has it.

    Returns:
        One line a problem; empty if there is none.
    """
    problems = []
    if recipe.base.name != spec.base.name:
        problems.append(
            f"base: must be the study's '{spec.base.name}'; got '{recipe.base.name}'. Rename one."
        )
    known = [expert.name for expert in spec.experts]
    problems += [
        f"experts: must be among the study's; got {ref.name!r}. {did_you_mean(ref.name, known)}"
        for ref in recipe.experts
        if ref.name not in known
    ]
    methods = sorted({space.method.name for space in spec.spaces})
    if recipe.method.name not in methods:
        problems.append(
            f"method: must be that of a space; got {recipe.method.name!r}. The spaces have "
            f"{', '.join(methods)}. Add a space with it."
        )
    if recipe.vocabulary != spec.vocabulary:
        problems.append(
            f"vocabulary: must be the study's '{spec.vocabulary}'; got '{recipe.vocabulary}'. "
            "Change one."
        )
    elif spec.vocabulary == "tokenizer" and recipe.tokenizer.from_ != spec.tokenizer.from_:
        problems.append(
            f"tokenizer.from: must be the study's '{spec.tokenizer.from_}'; got "
            f"'{recipe.tokenizer.from_}'. Change one."
        )
    elif recipe.tokenizer.rows != spec.tokenizer.rows:
        problems.append(
            f"tokenizer.tokens and tokenizer.pad_to_multiple_of: must be the study's, "
            f"{spec.tokenizer.rows}; got {recipe.tokenizer.rows}. Change one."
        )
    return problems


def over_study(
    spec: StudySpec, recipe: MergeRecipe, models: Mapping[str, CheckpointRef], *, where: str
) -> MergeRecipe:
    """Return a recipe over the models of a study, so that equal merges are equal candidates.

    Args:
        spec: The study with its checkpoints resolved.
        recipe: A recipe without `start_problems`.
        models: The study's checkpoint, or variant of one, for each expert of the recipe.
        where: The file, for messages.

    Returns:
        The recipe over all experts of the study. Its seed is the study's too, unless masks are
        drawn from it.

    Raises:
        ConfigError: If it is not legal over these models, e.g. for want of statistics.
    """
    document = recipe.resolved()
    document["base"] = spec.base.resolved()
    document["experts"] = [
        {**models.get(expert.name, expert).resolved(), "name": expert.name}
        for expert in spec.experts
    ]
    document["tokenizer"] = spec.tokenizer.resolved()
    if recipe.method.name not in _DRAW_MASKS:
        document["seed"] = spec.seed
    return parse_document(document, MergeRecipe, where=where)


def start_plans(spec: StudySpec) -> list[StartPlan]:
    """Decide what becomes of each warm start of a study.

    A recipe that a space can express is sampled there, first of all. Any other is a reference
    point as it is, and the nearest point of a space is sampled for it.

    Args:
        spec: The study with `StudySpec.started`.

    Returns:
        A plan for each, in their order.
    """
    known = {item.recipe.digest: item.label for item in _plain_references(spec)}
    sampled: dict[tuple[object, ...], str] = {}
    plans = []
    for start in spec.started:
        point = nearest_point(spec, start)
        reference, summary = None, ""
        if point is not None and point.exact:
            summary = f"sampled first, in {point_text(spec, point)}"
        else:
            same = known.setdefault(start.recipe.digest, start.label)
            if same == start.label:
                reference = Reference(start.label, start.recipe)
                summary = "no space expresses it, so it is a reference point as it is"
            else:
                summary = f"the same candidate as reference point '{same}'"
            if point is not None:
                summary += f"; its nearest is sampled first, in {point_text(spec, point)}"
        if point is not None:
            key = (point.space, *sorted(point.params.items()))
            earlier = sampled.setdefault(key, start.name)
            if earlier != start.name:
                summary += f" (as for start '{earlier}', once)"
                point = None
        plans.append(StartPlan(start, reference, point, f"start '{start.name}': {summary}"))
    return plans


def study_references(spec: StudySpec) -> list[Reference]:
    """Return every reference point of a study: parents and mean if asked for, then warm starts."""
    starts = [plan.reference for plan in start_plans(spec) if plan.reference is not None]
    return [*_plain_references(spec), *starts]


def _plain_references(spec: StudySpec) -> list[Reference]:
    return reference_recipes(spec) if spec.references else []
