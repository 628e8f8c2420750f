"""Which coefficient holds for a tensor: layer groups resolved to numbers."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from safemerge.config.recipe import DEFAULT_GROUP, Coefficient, LayerGroup, MergeRecipe, Method
from safemerge.errors import ConfigError
from safemerge.weights.checkpoint import layer_of


class Coefficients(NamedTuple):
    """The numbers of a method for one tensor; fields a method lacks are at their default."""

    weights: Mapping[str, float]
    """Weight by model name."""
    density: Mapping[str, float]
    """Density by expert name, in (0, 1]; empty for methods that do not sparsify."""
    lambda_: float = 1.0
    t: float = 0.0


def group_of(name: str, groups: Sequence[LayerGroup]) -> str:
    """Return the first layer group that matches a tensor name, ``default`` if none does.

    Args:
        name: Tensor name, e.g. ``model.layers.4.mlp.up_proj.weight``.
        groups: Layer groups in their declared order.

    Returns:
        The group's name, or ``default``.
    """
    layer = layer_of(name)
    for group in groups:
        if group.layers is not None:
            first, last = group.layer_range
            if layer is not None and first <= layer <= last:
                return group.name
        elif any(fnmatchcase(name, pattern) for pattern in group.tensors or ()):
            return group.name
    return DEFAULT_GROUP


def coefficient_at(coefficient: Coefficient, group: str) -> float:
    """Return a coefficient's number in a layer group.

    Args:
        coefficient: One number, or one by group (``default`` for groups it does not name).
        group: Group name or ``default``.

    Returns:
        The number.

    Raises:
        ConfigError: If the mapping has neither the group nor ``default``.
    """
    if not isinstance(coefficient, dict):
        return coefficient
    if group not in coefficient and DEFAULT_GROUP not in coefficient:
        raise ConfigError(
            f"coefficient {coefficient}: must name '{DEFAULT_GROUP}' for tensors that no layer "
            f"group matches; got a tensor of group '{group}'. Add '{DEFAULT_GROUP}'."
        )
    return coefficient.get(group, coefficient.get(DEFAULT_GROUP, 0.0))


def coefficients_for(method: Method, group: str) -> Coefficients:
    """Return a method's numbers in a layer group.

    Args:
        method: A recipe's method.
        group: Group name or ``default``.

    Returns:
        Weights, density, lambda and t.
    """
    weights: dict[str, Coefficient] = getattr(method, "weights", {})
    density: float | dict[str, float] | None = getattr(method, "density", None)
    if density is None:
        densities: dict[str, float] = {}
    elif isinstance(density, dict):
        densities = density
    else:
        densities = dict.fromkeys(weights, density)
    return Coefficients(
        weights={name: coefficient_at(value, group) for name, value in weights.items()},
        density=densities,
        lambda_=coefficient_at(getattr(method, "lambda_", 1.0), group),
        t=coefficient_at(getattr(method, "t", 0.0), group),
    )


def check_groups(recipe: MergeRecipe, names: Iterable[str]) -> None:
    """Check that layer groups and tensors cover each other; a gap is a mistake.

    Args:
        recipe: Recipe with layer groups.
        names: The base's tensor names.

    Raises:
        ConfigError: If a group matches no tensor, or only tensors of groups before it; or a
            tensor is in no group and a coefficient given by group has no ``default``.
    """
    example = {group_of(name, recipe.layer_groups): name for name in names}
    matched = set(example)
    for field, coefficient in recipe.method.coefficients():
        incomplete = isinstance(coefficient, dict) and DEFAULT_GROUP not in coefficient
        if incomplete and DEFAULT_GROUP in matched:
            raise ConfigError(
                f"recipe {recipe.digest[:4]}, method.{field}: must name '{DEFAULT_GROUP}', for "
                f"some tensors are in no layer group; got no value for "
                f"'{example[DEFAULT_GROUP]}'. Add '{DEFAULT_GROUP}' (0 leaves the base)."
            )
    for group in recipe.layer_groups:
        if group.name not in matched:
            rule = group.layers or ", ".join(group.tensors or ())
            raise ConfigError(
                f"recipe {recipe.digest[:4]}, layer_groups.{group.name}: must match a tensor that "
                f"no group before it matches; got none for {rule!r}. "
                f"Check the layer numbers (0-indexed) and the order of groups."
            )
