"""The point of a search space that is nearest to a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from safemerge.config.checkpoint import CheckpointRef, Setting
from safemerge.config.coefficient import DEFAULT_GROUP, Number
from safemerge.config.document import parse_document
from safemerge.config.dotted_path import get_path, set_path
from safemerge.config.range import Choice, FloatRange
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import SearchSpace, StudySpec
from safemerge.config.variant import TrainingPath, expert_settings, training_path
from safemerge.config.warm_start import WarmStart
from safemerge.errors import ConfigError
from safemerge.search.layer_mean import Span, depth_span, group_span, layer_mean
from safemerge.search.space import Value, recipe_at, space_by_name

_ADDITIVE = ("linear", "task_arithmetic")
"""Methods in which an expert of weight 0 is the same as one that is left out."""


class NearestPoint(NamedTuple):
    """A point of a space, for a recipe."""

    space: str
    params: dict[str, Value]
    """Value by dotted path; paths that the recipe says nothing of are left out."""
    exact: bool
    """Whether the point is the recipe, up to rounding."""
    rank: tuple[int, int, float]
    """What the recipe and the space disagree on, and by how much; the least is the nearest."""


def nearest_point(spec: StudySpec, start: WarmStart) -> NearestPoint | None:
    """Return the point nearest to a warm start in the spaces that have its method.

    Every varied value is the recipe's own where it has one, else the mean of its layer-wise
    coefficient (see `layer_mean`); then it is cut to the range, or moved to the nearest choice
    or step of a grid. The rest is the space's.

    Args:
        spec: The study.
        start: One of its warm starts.

    Returns:
        The point that is exact, else the one that keeps the recipe's steps and models and has
        to move least, in the first such space; None if no space has a legal one.
    """
    spaces = [space for space in spec.spaces if space.method.name == start.recipe.method.name]
    found = [point for space in spaces if (point := _Fit(spec, space, start).point()) is not None]
    return min(found, key=lambda point: (not point.exact, point.rank), default=None)


def exact_point(spec: StudySpec, space: SearchSpace, start: WarmStart) -> NearestPoint | None:
    """Return the point of one space that is a recipe exactly, None if it has none."""
    if space.method.name != start.recipe.method.name:
        return None
    point = _Fit(spec, space, start).point()
    return point if point is not None and point.exact else None


class _Fit:
    """One recipe against one space."""

    def __init__(self, spec: StudySpec, space: SearchSpace, start: WarmStart) -> None:
        self._spec, self._space, self._start = spec, space, start
        self._template = spec.template(space)
        self._document = _in_form(start.recipe.resolved(), self._template)
        self._coefficients = dict(start.recipe.coefficients())

    def point(self) -> NearestPoint | None:
        params: dict[str, Value] = {}
        moved = 0.0
        for path, values in self._space.vary.items():
            wanted = self._wanted(path)
            if wanted is None:
                continue
            value = _legal(values, wanted)
            if value is None:
                continue
            params[path] = value
            moved += _distance(values, wanted, value)
            if training_path(path) is None and _same(value, self._own(path)):
                set_path(self._document, path, value)
        missing = len(self._space.vary) - len(params)
        exact = False
        if not missing:
            try:
                exact = self._is_recipe(recipe_at(self._spec, self._space, params))
            except ConfigError:
                return None
        rank = (self._other_steps() + self._other_models(params), missing, moved)
        return NearestPoint(self._space.name, params, exact, rank)

    def _is_recipe(self, made: MergeRecipe) -> bool:
        own = parse_document(self._document, MergeRecipe, where=f"start '{self._start.name}'")
        return made.digest == own.digest

    def _own(self, path: str) -> Any:
        """What the recipe itself holds there, None if it has no such place."""
        try:
            return get_path(self._document, path)
        except KeyError:
            return None

    def _wanted(self, path: str) -> Value | None:
        place = training_path(path)
        if place is not None:
            return self._setting(place)
        own = self._own(path)
        if isinstance(own, float | int | bool | str) and self._is_same_place(path):
            return own
        return self._averaged(path)

    def _is_same_place(self, path: str) -> bool:
        """Whether a path means the same in the recipe as in the space: groups, anchors."""
        parent, _, last = path.rpartition(".")
        if not parent:
            return True
        above, like = self._own(parent), get_path(self._template, parent)
        if isinstance(like, list) and last.isdigit():
            return len(above) == len(like)
        grouped = last == DEFAULT_GROUP or any(
            group.name == last for group in self._space.layer_groups
        )
        return not grouped or self._document["layer_groups"] == self._template["layer_groups"]

    def _setting(self, place: TrainingPath) -> Setting | None:
        ref = next(item for item in self._start.recipe.experts if item.name == place.expert)
        varied = dict.fromkeys(self._space.vary, 0)
        names = set(expert_settings(varied)[place.expert])
        for variant in self._spec.variants:
            same_paths = variant.expert == place.expert and set(variant.settings) == names
            if same_paths and same_weights(ref, variant.checkpoint):
                return variant.settings[place.setting]
        return None

    def _averaged(self, path: str) -> float | None:
        """The mean of the recipe's coefficient over what the path holds for."""
        groups, num_layers = self._start.recipe.layer_groups, self._start.num_layers
        span = self._span(path)

        def mean(number: Number) -> float:
            return layer_mean(number, groups, span, num_layers=num_layers)

        inside = [
            number for field, number in self._coefficients.items() if _within(path, field)
        ] or [number for field, number in self._coefficients.items() if _within(field, path)]
        if inside:
            return sum(map(mean, inside)) / len(inside)
        return 0.0 if path.startswith("method.weights.") else None

    def _span(self, path: str) -> Span:
        groups, num_layers = self._space.layer_groups, self._start.num_layers
        parent, _, last = path.rpartition(".")
        above = get_path(self._template, parent) if parent else None
        if isinstance(above, list) and last.isdigit():
            return depth_span(int(last), len(above), num_layers=num_layers)
        if last == DEFAULT_GROUP or any(group.name == last for group in groups):
            return group_span(last, groups, num_layers=num_layers)
        return Span(tuple(range(num_layers)))

    def _other_steps(self) -> int:
        recipe = {step.name for step in self._start.recipe.steps}
        return len(recipe ^ {step.name for step in self._space.steps})

    def _other_models(self, params: Mapping[str, Value]) -> int:
        varied = {place.expert for path in params if (place := training_path(path)) is not None}
        return sum(
            not same_weights(own, ref)
            for own, ref in zip(self._spec.experts, self._start.recipe.experts, strict=True)
            if own.name not in varied
        )


def same_weights(first: CheckpointRef, second: CheckpointRef) -> bool:
    """Tell whether two references are one model: by fingerprint if both have one."""
    if first.digest is not None and second.digest is not None:
        return first.digest == second.digest
    return source_of(first) == source_of(second)


def source_of(ref: CheckpointRef) -> tuple[object, ...]:
    """Return where a reference says that its weights come from."""
    settings = tuple(sorted(ref.settings.items()))
    return ref.path, ref.hub, ref.revision, ref.package, ref.align, ref.finetune, settings


def point_text(spec: StudySpec, point: NearestPoint) -> str:
    """Return a point as text, e.g. ``space 'ties': weights.math 0.31, density 0.5``."""
    space = space_by_name(spec, point.space)
    values = (
        f"{path.removeprefix('method.')} {f'{value:.4g}' if isinstance(value, float) else value}"
        for path in space.vary
        if (value := point.params.get(path)) is not None
    )
    return f"space '{point.space}': {', '.join(values)}"


def _in_form(document: dict[str, Any], template: dict[str, Any]) -> dict[str, Any]:
    """Write a recipe as a space's template does, where that changes no weight."""
    groups, spread = document["layer_groups"], template["layer_groups"]
    if groups and groups != spread:
        return document
    document = {**document, "layer_groups": spread}
    method, like = dict(document["method"]), template["method"]
    if method["name"] in _ADDITIVE:
        zeros = dict.fromkeys(like["weights"], 0.0)
        method["weights"] = {**zeros, **method["weights"]}
    for field in ("weights", "density"):
        if isinstance(method.get(field), dict) and isinstance(like.get(field), dict):
            method[field] = {
                name: _spread(value, like[field].get(name))
                for name, value in method[field].items()
            }
    for field in method:
        if field not in ("name", "weights", "models"):
            method[field] = _spread(method[field], like.get(field))
    return {**document, "method": method}


def _spread(value: Any, like: Any) -> Any:
    """One number as a mapping or a list of it, if that is how the template has it."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        return value
    if isinstance(like, dict):
        return {name: _spread(value, item) for name, item in like.items()}
    return [value] * len(like) if isinstance(like, list) else value


def _within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _legal(values: FloatRange | Choice, wanted: Value) -> Value | None:
    """The legal value nearest to one; None if there is none like it."""
    number = isinstance(wanted, float | int) and not isinstance(wanted, bool)
    if isinstance(values, Choice):
        same = [item for item in values.choices if _same(item, wanted)]
        numbers = [item for item in values.choices if _is_number(item)]
        if same or not (number and numbers):
            return same[0] if same else None
        return min(numbers, key=lambda item: abs(float(item) - float(wanted)))
    if not number:
        return None
    grid = values.grid()
    if grid is not None:
        return min(grid, key=lambda item: abs(item - float(wanted)))
    return min(max(float(wanted), values.low), values.high)


def _distance(values: FloatRange | Choice, wanted: Value, value: Value) -> float:
    if not (_is_number(wanted) and _is_number(value)):
        return float(wanted != value)
    numbers = [float(item) for item in values.ends() if _is_number(item)]
    width = max(numbers) - min(numbers)
    return abs(float(value) - float(wanted)) / (width or 1.0)


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _same(first: object, second: object) -> bool:
    if _is_number(first) and _is_number(second):
        return math.isclose(float(first), float(second), rel_tol=1e-9, abs_tol=1e-12)  # type: ignore[arg-type]
    return type(first) is type(second) and first == second
