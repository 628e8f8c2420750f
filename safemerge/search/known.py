"""Reference points in a study's spaces: what a sampler knows before it samples.

Parents, the plain mean and warm starts are linear merges; a space of another method may express
the same weights by other numbers. A parent is one expert with weight 1, the base is any task
vector with lambda 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from safemerge.config.document import parse_document
from safemerge.config.method import Linear, TaskArithmetic
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import SearchSpace, StudySpec
from safemerge.config.warm_start import WarmStart
from safemerge.errors import ConfigError
from safemerge.records import TrialRecord
from safemerge.search.nearest import NearestPoint, exact_point
from safemerge.search.noise import VARIANCES, variances
from safemerge.search.space import optuna_distributions, optuna_params, space_by_name
from safemerge.search.warm_start import study_references

if TYPE_CHECKING:
    import optuna

REFERENCE = "reference"
"""User attribute of Optuna's trials that stand for a reference point: its number in the study.
They are finished when they are added, cost no budget and are never evaluated."""


def expressions(spec: StudySpec, recipe: MergeRecipe) -> list[NearestPoint]:
    """Return the points of a study's spaces that have the weights of a recipe, up to rounding.

    Known are merges that add up weights with one coefficient a model: linear and task arithmetic.
    They are points of spaces of these two methods without steps; the base is one of every space
    with a lambda that reaches 0.

    Args:
        spec: The study.
        recipe: A recipe over its models.

    Returns:
        At most one point a space, in their order.
    """
    shares = _shares(spec, recipe)
    if shares is None:
        return []
    found = []
    for space in spec.spaces:
        for method in _methods(spec, space, recipe, shares):
            point = _point(spec, space, recipe, method)
            if point is not None:
                found.append(point)
                break
    return found


def num_expressions(spec: StudySpec) -> int:
    """Return how many points of the spaces a study's reference points are."""
    return sum(len(expressions(spec, item.recipe)) for item in study_references(spec))


def reference_trials_of(spec: StudySpec, record: TrialRecord) -> list[FrozenTrial]:
    """Return a finished Optuna trial for each point that a reference's record is of the spaces."""
    if record.role != "reference" or record.state != "COMPLETE":
        return []
    values = [record.objectives[item.metric] for item in spec.objectives]
    trials = []
    for point in expressions(spec, MergeRecipe.model_validate(record.recipe)):
        space = space_by_name(spec, point.space)
        trials.append(
            create_trial(
                state=TrialState.COMPLETE,
                values=values,
                params=optuna_params(spec, space, point.params),
                distributions=optuna_distributions(spec, space),
                user_attrs={REFERENCE: record.number, VARIANCES: variances(record)},
                constraints=record.violations or None,
            )
        )
    return trials


def add_references(study: optuna.Study, spec: StudySpec, records: Iterable[TrialRecord]) -> None:
    """Let Optuna know of the reference points that it does not know of yet."""
    known = {
        (trial.user_attrs[REFERENCE], _key(trial.params))
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if REFERENCE in trial.user_attrs
    }
    for record in records:
        for trial in reference_trials_of(spec, record):
            if (record.number, _key(trial.params)) not in known:
                study.add_trial(trial)


def is_reference_of(spec: StudySpec, trial: FrozenTrial, record: TrialRecord | None) -> bool:
    """Whether one of Optuna's trials is a reference point as its record has it."""
    return record is not None and any(
        (trial.state, trial.values, trial.params, dict(trial.constraints))
        == (made.state, made.values, made.params, dict(made.constraints))
        for made in reference_trials_of(spec, record)
    )


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(params.items()))


def _shares(spec: StudySpec, recipe: MergeRecipe) -> dict[str, float] | None:
    """The share of each model in the weights, base included, without zeros; None if by layers."""
    method = recipe.method
    if recipe.steps or not isinstance(method, Linear | TaskArithmetic):
        return None
    weights = {name: value for name, value in method.weights.items() if isinstance(value, float)}
    if len(weights) < len(method.weights):
        return None
    total = sum(weights.values())
    if isinstance(method, TaskArithmetic):
        if method.normalize or not isinstance(method.lambda_, float):
            return None
        weights = {name: method.lambda_ * value for name, value in weights.items()}
        weights[spec.base.name] = 1.0 - sum(weights.values())
    elif method.normalize:
        if not total:
            return None
        weights = {name: value / total for name, value in weights.items()}
    elif not math.isclose(total, 1.0, rel_tol=1e-9):
        return None
    return {name: value for name, value in weights.items() if abs(value) > 1e-12}


def _methods(
    spec: StudySpec, space: SearchSpace, recipe: MergeRecipe, shares: Mapping[str, float]
) -> Iterator[dict[str, Any]]:
    """Yield what a space's method may look like for these shares."""
    if space.steps:
        return
    like: dict[str, Any] = space.method.resolved()
    experts = {name: value for name, value in shares.items() if name != spec.base.name}
    if isinstance(space.method, Linear):
        if isinstance(recipe.method, Linear):
            yield {**like, "weights": dict(recipe.method.weights)}
        yield {**like, "weights": dict(shares)}
    elif isinstance(space.method, TaskArithmetic) and not space.method.normalize:
        yield {
            **like,
            "weights": {**dict.fromkeys(like["weights"], 0.0), **experts},
            "lambda": 1.0,
        }
    if not experts and "lambda" in like:
        yield {**like, "lambda": 0.0}


def _point(
    spec: StudySpec, space: SearchSpace, recipe: MergeRecipe, method: dict[str, Any]
) -> NearestPoint | None:
    own = recipe.resolved()
    document = {**spec.template(space), "experts": own["experts"], "method": method}
    if any(own.get(key) != document.get(key) for key in ("dtype", "vocabulary", "tokenizer")):
        return None
    try:
        made = parse_document(document, MergeRecipe, where=f"space '{space.name}'")
    except ConfigError:
        return None
    return exact_point(spec, space, WarmStart(name="reference", recipe=made, num_layers=1))
