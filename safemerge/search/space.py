"""From a declared search space to Optuna's define-by-run calls, and to recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from safemerge.config.checkpoint import CheckpointRef, Neighbours, interpolated
from safemerge.config.coefficient import DEFAULT_GROUP
from safemerge.config.document import parse_document
from safemerge.config.dotted_path import set_path
from safemerge.config.range import FloatRange
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import SearchSpace, StudySpec
from safemerge.config.variant import (
    EXPERTS,
    ExpertVariant,
    expert_settings,
    same_settings,
    training_path,
)
from safemerge.errors import ConfigError
from safemerge.records import MEAN_LABEL
from safemerge.search.encoding import Encoding

Value = float | int | bool | str

SPACE_PARAMETER = "space"
"""Name of the categorical parameter that chooses the space, when there are several."""


@runtime_checkable
class Suggester(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = ..., log: bool = ...
    ) -> float:
        """Draw a real number in [low, high]."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of the choices."""
        ...


class Suggestion(NamedTuple):
    """One drawn point of the search."""

    space: str
    """Name of the space it was drawn from."""
    params: dict[str, Value]
    """Value by dotted path."""
    recipe: MergeRecipe


class Reference(NamedTuple):
    """A recipe that is evaluated for comparison, before anything is sampled."""

    label: str
    recipe: MergeRecipe


def suggest(trial: Suggester, spec: StudySpec) -> Suggestion:
    """Draw one recipe.

    With several spaces, the categorical parameter ``space`` comes first. A space's own
    parameters are named ``<space>/<path>``, so that equal paths of two spaces stay apart.

    Args:
        trial: An Optuna trial, or anything with its ``suggest_*`` methods.
        spec: The study.

    Returns:
        The space's name, the values by dotted path, and the recipe they make.

    Raises:
        ConfigError: If the values make an illegal recipe, although both ends of every range
            were legal; names the space and the values.
    """
    space = spec.spaces[0]
    if len(spec.spaces) > 1:
        name = trial.suggest_categorical(SPACE_PARAMETER, [item.name for item in spec.spaces])
        space = space_by_name(spec, name)
    params: dict[str, Value] = {}
    for path, distribution in _distributions(space).items():
        key = parameter_name(space, path)
        if isinstance(distribution, CategoricalDistribution):
            params[path] = trial.suggest_categorical(key, list(distribution.choices))
        else:
            params[path] = trial.suggest_float(
                key,
                distribution.low,
                distribution.high,
                step=distribution.step,
                log=distribution.log,
            )
    params = settled(space, params)
    return Suggestion(space.name, params, recipe_at(spec, space, params))


def settled(space: SearchSpace, params: Mapping[str, Value]) -> dict[str, Value]:
    """Return what drawn values stand for: between knots the nearest, or a short number.

    Args:
        space: The space they were drawn from.
        params: Value by dotted path, as Optuna has them.
    """
    return {
        path: values.settled(float(value))
        if isinstance(values := space.vary[path], FloatRange)
        else value
        for path, value in params.items()
    }


def recipe_at(spec: StudySpec, space: SearchSpace, params: dict[str, Value]) -> MergeRecipe:
    """Return a space's template with some of its values replaced.

    Args:
        spec: The study.
        space: One of its spaces.
        params: Value by dotted path; paths left out keep the template's value.

    Returns:
        The recipe.

    Raises:
        ConfigError: If the values make an illegal recipe, or a path does not exist.
    """
    document = spec.template(space)
    where = f"study '{spec.name}', space '{space.name}', at {params}"
    for expert, settings in expert_settings(params).items():
        _put(document, expert, _ingredient(spec, space, expert, settings, where=where))
    for path, value in params.items():
        if training_path(path) is not None:
            continue
        try:
            set_path(document, path, value)
        except KeyError as error:
            raise ConfigError(f"{where}: {error.args[0]}") from None
    return parse_document(document, MergeRecipe, where=where)


def reference_recipes(spec: StudySpec) -> list[Reference]:
    """Return what every search is compared with: each parent, and the experts' plain mean.

    A parent's recipe is linear with weight 1 on it alone, which gives its weights back
    exactly; the mean is linear with equal weights on the experts that a space merges, so that a
    model which only a step reads (a harmful one, say) is not averaged in. With a single such
    expert the two are the same candidate, listed once. Variants of an expert are parents too,
    where they are trained by now and their weights are not the expert's own.

    Args:
        spec: The study.

    Returns:
        The references: base, experts in declared order, the mean, then the variants, labelled
        by checkpoint name, ``mean`` and e.g. ``aligned[booster.lambda=20]``.
    """
    weights = [(item.name, {item.name: 1.0}) for item in spec.checkpoints]
    named = frozenset().union(*(space.method.model_names() for space in spec.spaces))
    merged = [item.name for item in spec.experts if item.name in named]
    if len(merged) > 1:
        weights.append((MEAN_LABEL, dict.fromkeys(merged, 1.0)))
    references = [Reference(label, _linear(spec, by_name)) for label, by_name in weights]
    known = {expert.digest for expert in spec.experts}
    for variant in spec.variants:
        found = variant.checkpoint.digest
        untrained = variant.checkpoint.name in spec.untrained
        if untrained or (found is not None and found in known):
            continue
        known.add(found)
        recipe = _linear(spec, {variant.expert: 1.0}, variant)
        references.append(Reference(variant.label, recipe))
    return references


def space_by_name(spec: StudySpec, name: str) -> SearchSpace:
    """Return the space of a study that has this name.

    Raises:
        ConfigError: If there is none.
    """
    for space in spec.spaces:
        if space.name == name:
            return space
    known = ", ".join(space.name for space in spec.spaces)
    raise ConfigError(f"study '{spec.name}': no such space; got {name!r}. Known: {known}.")


def optuna_params(spec: StudySpec, space: SearchSpace, params: dict[str, Value]) -> dict[str, Any]:
    """Return values by dotted path as Optuna's parameters, the choice of space included."""
    named: dict[str, Any] = {
        parameter_name(space, path): params[path] for path in space.vary if path in params
    }
    return {SPACE_PARAMETER: space.name, **named} if len(spec.spaces) > 1 else named


def optuna_distributions(spec: StudySpec, space: SearchSpace) -> dict[str, BaseDistribution]:
    """Return the distribution of each of `optuna_params`' parameters."""
    named: dict[str, BaseDistribution] = {
        parameter_name(space, path): item for path, item in _distributions(space).items()
    }
    if len(spec.spaces) == 1:
        return named
    names = [item.name for item in spec.spaces]
    return {SPACE_PARAMETER: CategoricalDistribution(names), **named}


def encoding(spec: StudySpec) -> Encoding:
    """Return the study's spaces as one unit cube; see `Encoding`."""
    paths = {parameter_name(space, path): path for space in spec.spaces for path in space.vary}
    grouped = {path for space in spec.spaces for path in space.vary if _is_layered(space, path)}
    return Encoding(
        {
            space.name: {
                parameter_name(space, path): item for path, item in _distributions(space).items()
            }
            for space in spec.spaces
        },
        chooser=SPACE_PARAMETER if len(spec.spaces) > 1 else None,
        paths=paths,
        groups={path: path.rpartition(".")[0] for path in grouped},
    )


def _is_layered(space: SearchSpace, path: str) -> bool:
    """Whether a path is a coefficient at one anchor, or of one layer group."""
    last = path.rpartition(".")[2]
    return last.isdigit() or last in {DEFAULT_GROUP, *(group.name for group in space.layer_groups)}


def parameter_name(space: SearchSpace, path: str) -> str:
    """Return Optuna's name of a parameter: ``<space>/<path>``."""
    return f"{space.name}/{path}"


def _distributions(space: SearchSpace) -> dict[str, CategoricalDistribution | FloatDistribution]:
    return {
        path: _float_distribution(values)
        if isinstance(values, FloatRange)
        else CategoricalDistribution(values.choices)
        for path, values in space.vary.items()
    }


def _float_distribution(values: FloatRange) -> FloatDistribution:
    if values.step is None:
        return FloatDistribution(values.low, values.high, log=values.log)
    # NOTE: Optuna warns when the step does not end on `high`; the grid's last value is known.
    grid = values.grid() or (values.low, values.high)
    return FloatDistribution(values.low, grid[-1], step=values.step)


def _linear(
    spec: StudySpec, weights: dict[str, float], variant: ExpertVariant | None = None
) -> MergeRecipe:
    document = {
        "base": spec.base.resolved(),
        "experts": [expert.resolved() for expert in spec.experts],
        "method": {"name": "linear", "weights": weights, "normalize": True},
        "dtype": spec.dtype,
        "seed": spec.seed,
        "vocabulary": spec.vocabulary,
        "tokenizer": spec.tokenizer.resolved(),
    }
    if variant is not None:
        _put(document, variant.expert, variant.checkpoint)
    return parse_document(document, MergeRecipe, where=f"study '{spec.name}', reference")


def _ingredient(
    spec: StudySpec,
    space: SearchSpace,
    expert: str,
    settings: Mapping[str, Value],
    *,
    where: str,
) -> CheckpointRef:
    """Return an expert trained with some settings, or what a place between two stands for.

    Raises:
        ConfigError: If the study trains no such variant.
    """
    for variant in spec.variants:
        if variant.expert == expert and same_settings(variant.settings, settings):
            return variant.checkpoint
    for setting, value in settings.items():
        values = space.vary[f"{EXPERTS}.{expert}.{setting}"]
        if isinstance(values, FloatRange) and values.interpolates:
            low, high, share = values.neighbours(float(value))
            ends = [
                _ingredient(spec, space, expert, {**settings, setting: knot}, where=where)
                for knot in (low, high)
            ]
            return interpolated(expert, Neighbours(low=ends[0], high=ends[1], share=share))
    raise ConfigError(
        f"{where}: expert '{expert}' must be a variant that the study trains; got none with "
        f"{settings}. Vary it in a space."
    )


def _put(document: dict[str, Any], expert: str, ref: CheckpointRef) -> None:
    """Let a variant stand under its expert's name."""
    document["experts"] = [
        {**ref.resolved(), "name": expert} if item["name"] == expert else item
        for item in document["experts"]
    ]
