"""mergekit's YAML as a recipe: what both can express, and a clear word on the rest."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeGuard

from safemerge.config.coefficient import DEFAULT_GROUP
from safemerge.config.mergekit_file import MergekitFile, Source

_METHOD_NAMES = {"multislerp": "multi_slerp"}
_SPARSE = (
    "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
)  # fmt: skip
_TASK_VECTORS = ("task_arithmetic", *_SPARSE)
_ELECTED = ("ties", "dare_ties", "della", "breadcrumbs_ties")
_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
_SUPPORTED = ("linear", "slerp", "multislerp", "karcher", "model_stock", *_TASK_VECTORS)

_DEFAULTS: Mapping[str, float] = {"density": 1.0, "gamma": 0.01, "epsilon": 0.15, "lambda": 1.0}
"""mergekit's own, where a file leaves a value out."""

_IGNORED = frozenset({"int8_mask"})
"""Saves mergekit memory and changes no weight."""

_CONDITION = frozenset({"filter", "value"})
_BASELESS = ("linear", "karcher", "multislerp")
_PER_MODEL = frozenset({"weight", "density", "gamma", "epsilon"})
"""What a model may have of its own; mergekit reads the rest for the whole merge only."""


class MergekitRecipe(NamedTuple):
    """A recipe made from a mergekit file."""

    document: dict[str, Any]
    """The recipe as plain dicts and lists, for `parse_document`."""
    num_layers: int | None
    """Layers that a ``layer_range`` says the models have; None where none is given."""


def is_mergekit(document: object) -> bool:
    """Tell whether a document is a mergekit file: it names a ``merge_method``."""
    return isinstance(document, dict) and "merge_method" in document


def recipe_of_mergekit(document: dict[str, Any], *, where: str) -> MergekitRecipe:
    """Translate a mergekit file.

    Models are named by the last part of their path, an adapter on the base by the adapter's.
    Gradients become anchors (after the last layer the last value, where mergekit 0.1.5 takes the
    first), filters become layer groups. Two sources are taken as whole models
    if one slice holds them at equal ``layer_range`` from 0. Weights are merged in float32
    whatever mergekit's ``dtype``, which is taken as the result's.

    Args:
        document: What `read_yaml` returned.
        where: The file name that messages start with.

    Returns:
        The recipe's document and the number of layers it presumes.

    Raises:
        ConfigError: If the file is malformed or uses what safemerge does not support; names it.
    """
    return _Translation(document, where).result()


class _Translation:
    def __init__(self, document: dict[str, Any], where: str) -> None:
        self.file = MergekitFile(document, where, _SUPPORTED)
        self.name = self.file.name
        self.parameters = self.file.parameters
        self.filters: list[str] = []
        self._error = self.file.error

    def result(self) -> MergekitRecipe:
        file = self.file
        base = self._base()
        paths = [source.model.path for source in file.sources]
        name_of = _names([base, *paths])
        method = self._method(file.sources, name_of, base)
        experts = [path for path in dict.fromkeys(paths) if path != base]
        document: dict[str, Any] = {
            "base": {"name": name_of[base], "path": base},
            "experts": [{"name": name_of[path], "path": path} for path in experts],
            "method": method,
            "layer_groups": [
                {"name": _group_name(at), "tensors": [f"*{text}*"]}
                for at, text in enumerate(self.filters)
            ],
        }
        if file.dtype is not None:
            document["dtype"] = file.dtype
        if file.tokenizer_source is not None:
            document["vocabulary"] = file.tokenizer_source
        return MergekitRecipe(document, file.num_layers)

    def _base(self) -> str:
        """Return the base's folder: the one named, or that of the first model."""
        named, first = self.file.base, self.file.sources[0].model
        if named is None:
            if self.name not in _BASELESS:
                raise self._error("base_model", f"is needed by {self.name}", None, "Add it as")
            base = first.host or first.path
        elif named.host is not None:
            raise self._error("base_model", "must be a whole model", named.text, "Change")
        else:
            base = named.path
        for source in self.file.sources:
            if source.model.host not in (None, base):
                raise self._error(
                    "models", f"an adapter must be on the base, {base!r}", source.model.text,
                    "Merge it into its own model first, then name that one in",
                )  # fmt: skip
        return base

    def _method(
        self, sources: list[Source], name_of: Mapping[str, str], base: str
    ) -> dict[str, Any]:
        name = self.name
        merged = [(source.model.path, source.parameters) for source in sources]
        if name in (*_TASK_VECTORS, "model_stock"):
            merged = [(path, own) for path, own in merged if path != base]
            if not merged:
                raise self._error("models", "must list a model besides the base", None, "Add to")
        self._collect_filters(own for _, own in merged)
        method: dict[str, Any] = {"name": _METHOD_NAMES.get(name, name)}
        allowed: set[str] = set(_IGNORED)
        if name == "slerp":
            ends = list(dict.fromkeys([base, *(path for path, _ in merged)]))
            if len(ends) != 2:
                raise self._error(
                    "models", "slerp takes the base and one model", len(ends), "Change"
                )
            method["models"] = [name_of[path] for path in ends]
            method["t"] = self._value("t", {})
            allowed |= {"t"}
        elif name == "model_stock":
            method["models"] = [name_of[path] for path, _ in merged]
            if self._flag("filter_wise", default=False):
                raise self._error("parameters.filter_wise", "is not supported", True, "Drop")
            allowed |= {"filter_wise"}
        elif name == "karcher":
            method["weights"] = {name_of[path]: 1.0 for path, _ in merged}
            method["num_steps"] = self._number("max_iter", 10, whole=True)
            method["tolerance"] = self._number("tol", 1e-5)
            allowed |= {"max_iter", "tol"}
        else:
            method["weights"] = {name_of[path]: self._value("weight", own) for path, own in merged}
            allowed |= {"weight"}
            if name == "multislerp":
                self._multislerp(method, allowed)
            elif name == "linear":
                method["normalize"] = self._flag("normalize", default=True)
                allowed |= {"normalize"}
            else:
                self._task_vectors(method, merged, name_of, allowed)
        self._check_parameters(allowed, (own for _, own in merged))
        return method

    def _multislerp(self, method: dict[str, Any], allowed: set[str]) -> None:
        if self.file.base is not None:
            raise self._error(
                "base_model", "multislerp around a base is not supported", None, "Drop"
            )
        if not self._flag("normalize_weights", default=True):
            raise self._error("parameters.normalize_weights", "must be true", False, "Drop")
        method["variant"] = "mergekit"
        self._number("eps", 1e-8)
        allowed |= {"normalize_weights", "eps"}

    def _task_vectors(
        self,
        method: dict[str, Any],
        merged: list[tuple[str, Mapping[str, Any]]],
        name_of: Mapping[str, str],
        allowed: set[str],
    ) -> None:
        name = self.name
        method["lambda"] = self._shared("lambda", merged)
        allowed |= {"lambda", "normalize", "rescale"}
        if name != "task_arithmetic":
            method["density"] = {
                name_of[path]: self._value("density", own) for path, own in merged
            }
            allowed |= {"density"}
        if name.startswith("breadcrumbs"):
            method["gamma"] = self._shared("gamma", merged)
            allowed |= {"gamma"}
        if name.startswith("della"):
            method["epsilon"] = self._shared("epsilon", merged)
            allowed |= {"epsilon"}
        if name in _ELECTED:
            method["normalize"] = self._flag("normalize", default=name == "ties")
        elif self._flag("normalize", default=False):
            raise self._error(
                "parameters.normalize", f"is not supported for {name}", True,
                "Divide the weights by their sum, then drop",
            )  # fmt: skip
        if name in _RANDOM:
            method["rescale"] = "l1" if self._flag("rescale", default=True) else "none"
        elif self._flag("rescale", default=False):
            raise self._error("parameters.rescale", f"is not supported for {name}", True, "Drop")

    def _check_parameters(self, allowed: set[str], own: Iterable[Mapping[str, Any]]) -> None:
        for place, given in (
            ("parameters", self.parameters),
            *(("models.parameters", item) for item in own),
        ):
            for key in sorted(set(given) - allowed):
                raise self._error(
                    f"{place}.{key}", f"is not supported for {self.name}", given[key], "Drop"
                )
            for key in sorted(set(given) - _PER_MODEL if place != "parameters" else ()):
                raise self._error(
                    f"{place}.{key}", "is one for the whole merge", given[key],
                    "Write under the file's own parameters the",
                )  # fmt: skip

    def _shared(self, key: str, merged: list[tuple[str, Mapping[str, Any]]]) -> Any:
        """Return a value that safemerge takes once for all models."""
        values = [self._value(key, own) for _, own in merged]
        if any(value != values[0] for value in values):
            raise self._error(
                f"models.parameters.{key}", "must be one for all models", values, "Set"
            )
        return values[0]

    def _flag(self, key: str, *, default: bool) -> bool:
        value = self.parameters.get(key, default)
        if not isinstance(value, bool | int | float):
            raise self._error(f"parameters.{key}", "must be true or false", value, "Change")
        return bool(value)

    def _number(self, key: str, default: float, *, whole: bool = False) -> float:
        value = self.parameters.get(key, default)
        if not _is_number(value) or (whole and not isinstance(value, int)):
            rule = f"must be a {'whole ' if whole else ''}number"
            raise self._error(f"parameters.{key}", rule, value, "Change")
        return value

    def _collect_filters(self, own: Iterable[Mapping[str, Any]]) -> None:
        for given in (*own, self.parameters):
            for value in given.values():
                for item in _conditions(value):
                    text = item.get("filter")
                    if isinstance(text, str) and text not in ("*", *self.filters):
                        self.filters.append(text)

    def _value(self, key: str, own: Mapping[str, Any]) -> Any:
        given = own.get(key, self.parameters.get(key))
        default = _DEFAULTS.get(key)
        if own.get(key) is not None and (outer := self.parameters.get(key)) is not None:
            # mergekit falls back to the outer value where no filter of the inner list matches.
            default = outer if _is_number(outer) else None
        if given is None:
            if default is None:
                raise self._error(f"parameters.{key}", "is needed", None, "Add it as")
            return default
        plain = _plain(given)
        if plain is not None:
            return plain
        conditions = _conditions(given)
        if not conditions:
            raise self._error(f"parameters.{key}", "must be a number or a list", given, "Change")
        by_group: dict[str, Any] = {}
        seen: list[str] = []
        for item in conditions:
            text, number = item.get("filter"), _plain(item.get("value"))
            if number is None or not isinstance(text, str | None) or set(item) - _CONDITION:
                raise self._error(
                    f"parameters.{key}", "must have a value, and at most a filter, in each item",
                    item, "Change",
                )  # fmt: skip
            if text in (None, "*"):
                by_group[DEFAULT_GROUP] = number
                break
            seen.append(text)
            by_group.setdefault(_group_name(self.filters.index(text)), number)
        if DEFAULT_GROUP not in by_group:
            if default is None:
                raise self._error(f"parameters.{key}", "must end with a value for the rest", given,
                                  "Add one without filter to")  # fmt: skip
            by_group[DEFAULT_GROUP] = default
        if seen != self.filters:
            raise self._error(
                f"parameters.{key}", "all filtered values must have the same filters in one order",
                f"{seen} against {self.filters}", "List the same filters everywhere, also in",
            )  # fmt: skip
        return by_group


def _plain(given: object) -> float | list[float] | None:
    """Return a number, or the anchors of a gradient; None for anything else."""
    if _is_number(given):
        return float(given)
    if not isinstance(given, list) or not given or not all(map(_is_number, given)):
        return None
    return [float(item) for item in given] if len(given) > 1 else float(given[0])


def _conditions(given: object) -> list[dict[str, Any]]:
    """Return the items of a setting with filters, which may be one; none for anything else."""
    items: list[Any] = given if isinstance(given, list) else [given]
    return items if all(isinstance(item, dict) for item in items) else []


def _is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _group_name(at: int) -> str:
    return f"filter-{at + 1}"


def _names(paths: list[str]) -> dict[str, str]:
    """Name models by the last part of their path, made unique and fit for dotted paths."""
    names: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        last = re.sub(r"[^A-Za-z0-9_-]+", "-", path.rstrip("/").rsplit("/", 1)[-1]).strip("-_")
        stem = (last or "model")[:56]
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[path] = name
    return names
