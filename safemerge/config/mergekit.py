"""mergekit's YAML as a recipe: what both can express, and a clear word on the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from safemerge.config.coefficient import DEFAULT_GROUP
from safemerge.errors import ConfigError

_TOP = frozenset(
    {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}
    | {"tokenizer_source", "tokenizer", "chat_template", "modules"}
)
_DTYPES = ("float32", "bfloat16", "float16")
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

    Models are named by the last part of their path. Gradients become anchors, filters become
    layer groups. Two sources are taken as whole models if one slice holds them at equal
    ``layer_range`` from 0. Weights are merged in float32 whatever mergekit's ``dtype``, which is
    taken as the result's.

    Args:
        document: What `read_yaml` returned.
        where: The file name that messages start with.

    Returns:
        The recipe's document and the number of layers it presumes.

    Raises:
        ConfigError: If the file uses what safemerge does not support; names it.
    """
    return _Translation(document, where).result()


class _Translation:
    def __init__(self, document: dict[str, Any], where: str) -> None:
        self.document = document
        self.where = where
        self.name = str(document.get("merge_method"))
        self.parameters: dict[str, Any] = dict(document.get("parameters") or {})
        self.filters: list[str] = []
        self.num_layers: int | None = None

    def result(self) -> MergekitRecipe:
        self._check_top()
        models = self._models()
        base = self.document.get("base_model")
        if base is None and self.name not in ("linear", "karcher", "multislerp"):
            raise self._error("base_model", f"is needed by {self.name}", None, "Add it")
        paths = [path for path, _ in models]
        if base is None:
            base = paths[0]
        name_of = _names([self._path("base_model", base), *paths])
        base_path = self._path("base_model", base)
        method = self._method(models, name_of, base_path)
        experts = [path for path in dict.fromkeys(paths) if path != base_path]
        document: dict[str, Any] = {
            "base": {"name": name_of[base_path], "path": base_path},
            "experts": [{"name": name_of[path], "path": path} for path in experts],
            "method": method,
            "layer_groups": [
                {"name": _group_name(at), "tensors": [f"*{text}*"]}
                for at, text in enumerate(self.filters)
            ],
        }
        dtype = self.document.get("out_dtype") or self.document.get("dtype")
        if dtype is not None:
            if dtype not in _DTYPES:
                raise self._error("dtype", f"must be one of {', '.join(_DTYPES)}", dtype, "Change")
            document["dtype"] = dtype
        if self.document.get("tokenizer_source") is not None:
            document["vocabulary"] = self.document["tokenizer_source"]
        return MergekitRecipe(document, self.num_layers)

    def _check_top(self) -> None:
        unknown = sorted(map(str, set(self.document) - _TOP))
        if unknown:
            raise self._error(
                unknown[0], "is no key of mergekit that safemerge knows", None, "Drop"
            )
        if self.name not in _SUPPORTED:
            raise self._error(
                "merge_method", f"must be one of {', '.join(_SUPPORTED)}", self.name, "Change"
            )
        for key in ("tokenizer", "chat_template", "modules"):
            if self.document.get(key) is not None:
                raise self._error(
                    key, "is not supported: the base's is kept", self.document[key], "Drop"
                )
        source = self.document.get("tokenizer_source")
        if source not in (None, "base", "union"):
            raise self._error("tokenizer_source", "must be base or union", source, "Change")

    def _models(self) -> list[tuple[str, dict[str, Any]]]:
        """Return (path, parameters) of every model listed."""
        slices, models = self.document.get("slices"), self.document.get("models")
        if slices is not None:
            if models is not None or not isinstance(slices, list) or len(slices) != 1:
                raise self._error(
                    "slices", "layers cannot be rearranged: one slice over all layers is taken",
                    f"{len(slices) if isinstance(slices, list) else 'no list'}", "Use models",
                )  # fmt: skip
            models = list((slices[0] or {}).get("sources") or [])
            ranges = [source.get("layer_range") for source in models]
            first = ranges[0] if ranges else None
            if not first or any(item != first for item in ranges) or first[0] != 0:
                raise self._error(
                    "slices.0", "sources must share one layer_range from 0", ranges, "Use models"
                )
            self.num_layers = int(first[1])
            own = (slices[0] or {}).get("parameters") or {}
            self.parameters = {**self.parameters, **own}
        if not isinstance(models, list) or not models:
            raise self._error("models", "must list models", models, "Add some")
        found = []
        for index, entry in enumerate(models):
            place = f"models.{index}"
            if not isinstance(entry, dict) or "model" not in entry:
                raise self._error(place, "must be a mapping with 'model'", entry, "Change")
            extra = sorted(set(entry) - {"model", "parameters", "layer_range"})
            if extra:
                raise self._error(
                    f"{place}.{extra[0]}", "is not supported", entry[extra[0]], "Drop"
                )
            path = self._path(f"{place}.model", entry["model"])
            found.append((path, dict(entry.get("parameters") or {})))
        return found

    def _method(
        self, models: list[tuple[str, dict[str, Any]]], name_of: Mapping[str, str], base: str
    ) -> dict[str, Any]:
        name = self.name
        merged = models
        if name in (*_TASK_VECTORS, "model_stock"):
            merged = [(path, own) for path, own in models if path != base]
        self._collect_filters(own for _, own in merged)
        method: dict[str, Any] = {"name": _METHOD_NAMES.get(name, name)}
        allowed: set[str] = set(_IGNORED)
        if name == "slerp":
            ends = list(dict.fromkeys([base, *(path for path, _ in models)]))
            if len(ends) != 2:
                raise self._error(
                    "models", "slerp takes the base and one model", len(ends), "Change"
                )
            method["models"] = [name_of[path] for path in ends]
            method["t"] = self._value("t", {})
            allowed |= {"t"}
        elif name == "model_stock":
            method["models"] = [name_of[path] for path, _ in merged]
            if self.parameters.get("filter_wise"):
                raise self._error("parameters.filter_wise", "is not supported", True, "Drop")
            allowed |= {"filter_wise"}
        elif name == "karcher":
            method["weights"] = {name_of[path]: 1.0 for path, _ in merged}
            method["num_steps"] = int(self.parameters.get("max_iter", 10))
            method["tolerance"] = float(self.parameters.get("tol", 1e-5))
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
        if self.document.get("base_model") is not None:
            raise self._error(
                "base_model", "multislerp around a base is not supported", None, "Drop"
            )
        if not self._flag("normalize_weights", default=True):
            raise self._error("parameters.normalize_weights", "must be true", False, "Drop")
        method["variant"] = "mergekit"
        allowed |= {"normalize_weights", "eps"}

    def _task_vectors(
        self,
        method: dict[str, Any],
        merged: list[tuple[str, dict[str, Any]]],
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

    def _check_parameters(self, allowed: set[str], own: Iterable[dict[str, Any]]) -> None:
        for place, given in (
            ("parameters", self.parameters),
            *(("models.parameters", item) for item in own),
        ):
            for key in sorted(map(str, set(given) - allowed)):
                raise self._error(
                    f"{place}.{key}", f"is not supported for {self.name}", given[key], "Drop"
                )

    def _shared(self, key: str, merged: list[tuple[str, dict[str, Any]]]) -> Any:
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

    def _collect_filters(self, own: Iterable[dict[str, Any]]) -> None:
        for given in (*own, self.parameters):
            for value in given.values():
                for item in value if isinstance(value, list) else ():
                    text = item.get("filter") if isinstance(item, dict) else None
                    if text not in (None, "*", *self.filters):
                        self.filters.append(str(text))

    def _value(self, key: str, own: dict[str, Any]) -> Any:
        given = own.get(key, self.parameters.get(key))
        default = _DEFAULTS.get(key)
        if own.get(key) is not None and (outer := self.parameters.get(key)) is not None:
            # mergekit falls back to the outer value where no filter of the inner list matches.
            default = outer if _is_number(outer) else None
        if given is None:
            if default is None:
                raise self._error(f"parameters.{key}", "is needed", None, "Add it")
            return default
        if _is_number(given):
            return float(given)
        if isinstance(given, list) and given and all(map(_is_number, given)):
            return [float(item) for item in given] if len(given) > 1 else float(given[0])
        if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
            raise self._error(f"parameters.{key}", "must be a number or a list", given, "Change")
        by_group: dict[str, Any] = {}
        seen: list[str] = []
        for item in given:
            text, inner = item.get("filter"), item.get("value")
            number = self._value(key, {key: inner})
            if text in (None, "*"):
                by_group[DEFAULT_GROUP] = number
                break
            seen.append(str(text))
            by_group.setdefault(_group_name(self.filters.index(str(text))), number)
        if DEFAULT_GROUP not in by_group:
            if default is None:
                raise self._error(f"parameters.{key}", "must end with a value for the rest", given,
                                  "Add one without filter")  # fmt: skip
            by_group[DEFAULT_GROUP] = default
        if seen != self.filters[: len(seen)] or len(seen) != len(self.filters):
            raise self._error(
                f"parameters.{key}", "all filtered values must have the same filters in one order",
                f"{seen} against {self.filters}", "List the same filters everywhere",
            )  # fmt: skip
        return by_group

    def _path(self, place: str, model: object) -> str:
        if isinstance(model, dict):
            inner = model.get("model")
            path = inner.get("path") if isinstance(inner, dict) else inner
            if path is None or model.get("lora") is not None:
                raise self._error(
                    place, "an adapter on a model is not supported", model,
                    "Name the adapter's folder alone",
                )  # fmt: skip
            return str(path)
        if not isinstance(model, str) or not model:
            raise self._error(place, "must be a model's folder", model, "Change")
        if "+" in model:
            raise self._error(
                place, "an adapter on a model is not supported", model,
                "Name the adapter's folder alone",
            )  # fmt: skip
        return model

    def _error(self, key: str, rule: str, got: object, advice: str) -> ConfigError:
        value = "" if got is None else f"; got {got!r}"
        return ConfigError(f"{self.where}: mergekit's {key}: {rule}{value}. {advice} {key}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
