"""Which coefficient holds for a tensor: layer groups and depths resolved to numbers."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import NamedTuple

from safemerge.config.coefficient import (
    DEFAULT_GROUP,
    Anchors,
    LayerGroup,
    Number,
    has_anchors,
    layerwise_fields,
)
from safemerge.config.merge_method import AddedMethod
from safemerge.config.method import BY_EXPERT, MethodSpec
from safemerge.config.recipe import MergeRecipe
from safemerge.config.step import StepSpec
from safemerge.errors import ConfigError
from safemerge.weights.checkpoint import layer_of
from safemerge.weights.kind import module_kind, tower_of

Option = float | int | bool | str

_NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})
_NOT_BY_EXPERT: Mapping[str, Mapping[str, float]] = MappingProxyType({})


class Coefficients(NamedTuple):
    """The numbers of a method for one tensor; fields a method lacks are at their default."""

    weights: Mapping[str, float]
    """Weight by model name."""
    density: Mapping[str, float]
    """Density by expert name, in (0, 1]; empty for methods that do not sparsify."""
    lambda_: float = 1.0
    t: float = 0.0
    options: Mapping[str, Option] = _NO_OPTIONS
    """The method's other parameters by field name, e.g. ``gamma`` or ``variant``."""
    by_expert: Mapping[str, Mapping[str, float]] = _NOT_BY_EXPERT
    """Parameters that experts have of their own, by field and expert, e.g. ``epsilon``."""

    def number(self, name: str) -> float:
        """Return an option that is a number."""
        value = self.options[name]
        assert not isinstance(value, str)
        return float(value)

    def number_of(self, expert: str, name: str) -> float:
        """Return an option that is a number: the expert's own where it has one."""
        own = self.by_expert.get(name, {}).get(expert)
        return self.number(name) if own is None else own


def group_of(name: str, groups: Sequence[LayerGroup]) -> str:
    """Return the first layer group that matches a tensor name, ``default`` if none does.

    Layers and kinds are those of the text decoder: towers beside it (`tower_of`), as a vision
    encoder, are in a group only if its patterns of names match them.

    Args:
        name: Tensor name, e.g. ``model.layers.4.mlp.up_proj.weight``.
        groups: Layer groups in their declared order.

    Returns:
        The group's name, or ``default``.
    """
    for group in groups:
        if _matches(name, group):
            return group.name
    return DEFAULT_GROUP


def depth_of(name: str, num_layers: int | None, anchors: Anchors = "depth") -> float | None:
    """Return a tensor's depth: where anchors are read.

    Args:
        name: Tensor name.
        num_layers: Decoder layers of the model; None if unknown.
        anchors: How the recipe reads anchors outside the layers.

    Returns:
        Layer number over ``num_layers - 1``, in [0, 1]; 0 for embeddings before the layers
        (and for a model of one layer), 1 for what comes after them, as in mergekit 0.0; with
        ``mergekit`` 0 for both, as in 0.1.5, and 1 for the layer of a model of one. Towers beside
        the text decoder are at 0.5, the middle; with ``mergekit`` at 0. None for a tensor of a
        layer if the number of layers is unknown.
    """
    if tower_of(name) is not None:
        return 0.5 if anchors == "depth" else 0.0
    layer = layer_of(name)
    if layer is None:
        return 1.0 if anchors == "depth" and _is_after_layers(name) else 0.0
    if num_layers is None:
        return None
    if num_layers > 1:
        return min(1.0, layer / (num_layers - 1))
    return 0.0 if anchors == "depth" else 1.0


def coefficient_at(coefficient: Number, group: str, depth: float | None = None) -> float:
    """Return a coefficient's number for a layer group and a depth.

    Args:
        coefficient: One number, anchors, or either by group (``default`` for groups it does
            not name).
        group: Group name or ``default``.
        depth: Position among the layers, in [0, 1]; needed for anchors only. Anchors stand at
            equal steps from 0 to 1; between two of them values are linear.

    Returns:
        The number.

    Raises:
        ConfigError: If a mapping has neither the group nor ``default``, or anchors are given
            for a tensor of unknown depth.
    """
    if isinstance(coefficient, dict):
        if group not in coefficient and DEFAULT_GROUP not in coefficient:
            raise ConfigError(
                f"coefficient {coefficient}: must name '{DEFAULT_GROUP}' for tensors that no "
                f"layer group matches; got a tensor of group '{group}'. Add '{DEFAULT_GROUP}'."
            )
        coefficient = coefficient.get(group, coefficient.get(DEFAULT_GROUP, 0.0))
    if not isinstance(coefficient, list):
        return coefficient
    if depth is None:
        raise ConfigError(
            f"coefficient {coefficient}: anchors need a model with a known number of layers; got "
            f"none. Give one number, or say num_layers."
        )
    place = depth * (len(coefficient) - 1)
    before = min(int(place), len(coefficient) - 2)
    share = place - before
    return coefficient[before] * (1.0 - share) + coefficient[before + 1] * share


def coefficients_for(
    method: MethodSpec, group: str = DEFAULT_GROUP, depth: float | None = None
) -> Coefficients:
    """Return a method's numbers for a layer group and a depth.

    Args:
        method: A recipe's method.
        group: Group name or ``default``.
        depth: Position among the layers, in [0, 1]; see `depth_of`.

    Returns:
        Weights, density, lambda, t and the other parameters.
    """

    def at(value: Number) -> float:
        return coefficient_at(value, group, depth)

    weights: dict[str, Number] = getattr(method, "weights", {})
    if not weights and hasattr(method, "lambda_"):
        weights = dict.fromkeys(sorted(method.model_names()), 1.0)
    layerwise = layerwise_fields(type(method))
    if isinstance(method, AddedMethod):
        own = {field: getattr(method, field) for field in method.parameters}
        return Coefficients(
            weights={name: at(value) for name, value in weights.items()},
            density={},
            lambda_=at(getattr(method, "lambda_", 1.0)),
            options={key: at(own[key]) if key in layerwise else own[key] for key in own},
        )
    density: Number | None = getattr(method, "density", None)
    if density is None:
        densities: dict[str, float] = {}
    elif isinstance(density, dict):
        densities = {name: at(value) for name, value in density.items()}
    else:
        densities = dict.fromkeys(weights, at(density))
    known = {"name", "weights", "models", "density", "lambda_", "t", *BY_EXPERT}
    options = {
        field: at(value) if field in layerwise else value
        for field in type(method).model_fields
        if field not in known and (value := getattr(method, field)) is not None
    }
    return Coefficients(
        weights={name: at(value) for name, value in weights.items()},
        density=densities,
        lambda_=at(getattr(method, "lambda_", 1.0)),
        t=at(getattr(method, "t", 0.0)),
        options=options,
        by_expert={
            field.removesuffix("_by_expert"): {name: at(item) for name, item in value.items()}
            for field in BY_EXPERT
            if (value := getattr(method, field, None)) is not None
        },
    )


def step_numbers(
    step: StepSpec, group: str = DEFAULT_GROUP, depth: float | None = None
) -> dict[str, float]:
    """Return a step's coefficients for a layer group and a depth, by field name.

    Args:
        step: A step of a recipe.
        group: Group name or ``default``.
        depth: Position among the layers, in [0, 1]; see `depth_of`.

    Returns:
        Number by field name, ``field.expert`` for one that is given by expert.
    """
    return {
        field: coefficient_at(coefficient, group, depth)
        for field, coefficient in step.coefficients()
    }


def check_groups(recipe: MergeRecipe, names: Iterable[str]) -> None:
    """Check that layer groups and tensors cover each other; a gap is a mistake.

    Args:
        recipe: Recipe with layer groups.
        names: The base's tensor names.

    Raises:
        ConfigError: If a group matches no tensor, or only tensors of groups before it; a
            pattern of a group matches no tensor at all; a tensor is in no group and a
            coefficient given by group has no ``default``; or a coefficient has anchors and no
            tensor belongs to a layer.
    """
    names = tuple(names)
    where = f"recipe {recipe.digest[:4]}"
    example = {group_of(name, recipe.layer_groups): name for name in names}
    for field, coefficient in recipe.coefficients():
        incomplete = isinstance(coefficient, dict) and DEFAULT_GROUP not in coefficient
        if incomplete and DEFAULT_GROUP in example:
            raise ConfigError(
                f"{where}, {field}: must name '{DEFAULT_GROUP}', for "
                f"some tensors are in no layer group; got no value for "
                f"'{example[DEFAULT_GROUP]}'. Add '{DEFAULT_GROUP}' (0 leaves the base)."
            )
        if has_anchors(coefficient) and all(layer_of(name) is None for name in names):
            raise ConfigError(
                f"{where}, {field}: anchors need tensors of numbered layers; got names such as "
                f"'{names[0] if names else ''}'. Give one number."
            )
    for group in recipe.layer_groups:
        if group.optional:
            continue
        if group.name not in example:
            raise ConfigError(
                f"{where}, layer_groups.{group.name}: must match a tensor that "
                f"no group before it matches; got none for {group.rule!r}. "
                f"Check the layer numbers (0-indexed) and the order of groups."
            )
        for pattern in group.tensors or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigError(
                    f"{where}, layer_groups.{group.name}.tensors: every pattern must match a "
                    f"tensor; got none for {pattern!r}. Names look like '{names[0]}'."
                )


def _matches(name: str, group: LayerGroup) -> bool:
    if group.layers is not None:
        layer = layer_of(name)
        first, last = group.layer_range
        if layer is None or not first <= layer <= last:
            return False
    if group.kind is not None and (module_kind(name) != group.kind or tower_of(name) is not None):
        return False
    if group.outside is not None:
        place = "after" if _is_after_layers(name) else "before"
        if layer_of(name) is not None or place != group.outside:
            return False
    return group.tensors is None or any(fnmatchcase(name, item) for item in group.tensors)


def _is_after_layers(name: str) -> bool:
    """Tell of a tensor outside the layers whether it comes after them, not before."""
    return "lm_head" in name or module_kind(name) != "embeddings"
