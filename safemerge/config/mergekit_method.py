"""Merge methods of mergekit as methods of a recipe, each in mergekit's variant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

from safemerge.config.coefficient import DEFAULT_GROUP, leaves
from safemerge.config.mergekit_file import (
    Entry,
    Level,
    MergekitFile,
    MergekitModel,
    Plain,
    Slice,
    Source,
    at_start,
    in_slice,
    is_number,
)


class Setting(NamedTuple):
    """A parameter's entries in every slice, to be turned into a coefficient."""

    slices: tuple[tuple[Entry, ...], ...]


class _Region(NamedTuple):
    """Tensors for which the entries of one slice hold."""

    name: str
    rule: dict[str, str]
    slice_at: int


class Groups:
    """Layer groups that tell apart whatever some settings tell apart.

    Args:
        settings: Every setting of the file.
        lengths: Number of layers of each slice; of a file with models alone, any one number.
    """

    def __init__(self, settings: Sequence[Setting], lengths: Sequence[int]) -> None:
        self._lengths = lengths
        every = [entry for setting in settings for item in setting.slices for entry in item]
        self._filters = _in_order(entry.filter for entry in every if entry.filter)
        alike = all(len(set(map(repr, setting.slices))) == 1 for setting in settings)
        gradients = any(isinstance(entry.value, list) for entry in every)
        self.has_gradients = gradients
        self.apart: dict[tuple[str, str], None] = {}
        """Pairs of filters that must not match one tensor for the coefficients to hold."""
        self._regions = [] if alike and (len(lengths) == 1 or not gradients) else self._all()

    def layer_groups(self) -> list[dict[str, Any]]:
        """Return the groups as a recipe declares them."""
        if not self._regions:
            return [
                {"name": f"filter-{at + 1}", "tensors": [_pattern(text)], "optional": True}
                for at, text in enumerate(self._filters)
            ]
        groups = []
        for region in self._regions:
            for at, text in enumerate(self._filters):
                name = f"{region.name}-filter-{at + 1}"
                rule = {**region.rule, "tensors": [_pattern(text)]}
                groups.append({"name": name, **rule, "optional": True})
            groups.append({"name": region.name, **region.rule, "optional": True})
        return groups

    def coefficient(self, setting: Setting) -> Any:
        """Return a setting as a coefficient: a number, anchors, or either by layer group."""
        if not self._regions:
            entries = setting.slices[0]
            if len(entries) == 1:
                return entries[0].value
            by_group: dict[str, Any] = {
                f"filter-{at + 1}": self._of_filter(entries, text)
                for at, text in enumerate(self._filters)
            }
            return {**by_group, DEFAULT_GROUP: entries[-1].value}
        found: dict[str, Any] = {}
        for region in self._regions:
            entries = setting.slices[region.slice_at]
            for at, text in enumerate(self._filters):
                value = self._of_filter(entries, text)
                found[f"{region.name}-filter-{at + 1}"] = self._within(region, value)
            found[region.name] = self._within(region, entries[-1].value)
        values = list(found.values())
        if all(value == values[0] for value in values):
            return values[0]
        return {**found, DEFAULT_GROUP: found["before"]}

    def _all(self) -> list[_Region]:
        regions, first = [_Region("before", {"outside": "before"}, 0)], 0
        for at, length in enumerate(self._lengths):
            rule = {"layers": f"{first}-{first + length - 1}"}
            regions.append(_Region(f"slice-{at + 1}", rule, at))
            first += length
        return [*regions, _Region("after", {"outside": "after"}, len(self._lengths) - 1)]

    def _within(self, region: _Region, value: Plain) -> Plain:
        if "outside" in region.rule:
            return at_start(value)
        first, last = map(int, region.rule["layers"].split("-"))
        return in_slice(value, first=first, last=last, num_layers=sum(self._lengths))

    def _of_filter(self, entries: Sequence[Entry], text: str) -> Plain:
        """Return what holds for the tensors that match a filter and none before it."""
        for entry in entries:
            if entry.filter is None or entry.filter in text:
                return entry.value
            if self._filters.index(entry.filter) > self._filters.index(text):
                self.apart[text, entry.filter] = None
        raise AssertionError("the last entry is for every tensor")


def _in_order(filters: Iterable[str]) -> list[str]:
    """Return filters as they come, each once, but before those that hold wherever it does."""
    found: list[str] = []
    for text in dict.fromkeys(filters):
        wider = (at for at, other in enumerate(found) if other in text)
        found.insert(next(wider, len(found)), text)
    return found


def _pattern(text: str) -> str:
    """Return the glob for names that hold a text."""
    escaped = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in text)
    return f"*{escaped}*"


Layers = tuple[tuple[MergekitModel, int, int], ...]
"""Models one above the other, each with its first layer and the one to stop before."""


class Slot(NamedTuple):
    """What one place among the merged models holds, from slice to slice."""

    sources: tuple[Source, ...]
    """One for each slice."""

    @property
    def model(self) -> MergekitModel | Layers:
        """The one model whose layers stand in their own order, or what is stacked."""
        first = self.sources[0].model
        layers = [item.layers for item in self.sources]
        in_order = all(
            later is not None and earlier is not None and earlier[1] == later[0]
            for earlier, later in pairwise(layers)
        )
        whole = in_order and (layers[0] is None or layers[0][0] == 0)
        if whole and all(item.model == first for item in self.sources):
            return first
        return tuple((item.model, *(item.layers or (0, 0))) for item in self.sources)


class Arrangement(NamedTuple):
    """The slots of a file."""

    slices: tuple[Slice, ...]
    slots: tuple[Slot, ...]
    """The base's first, where the file has one among its models."""
    has_base: bool
    """Whether the first slot is the base model's."""

    @property
    def num_layers(self) -> int | None:
        """Layers of the result; None where the file does not say."""
        layers = [item.layers for item in self.slots[0].sources]
        return sum(stop - start for start, stop in filter(None, layers)) or None


def arrange(file: MergekitFile, *, needs_base: bool) -> Arrangement | None:
    """Sort the sources of every slice into slots: the base first, others as they are listed.

    Args:
        file: The file; collects what is wrong.
        needs_base: Whether the method measures from the base, which then is a source of each
            slice, listed or not.

    Returns:
        The slots; None if they do not fit together.
    """
    rows: list[list[Source]] = []
    num_problems = len(file.problems)
    listed_models = len(file.slices) == 1 and file.slices[0].sources[0].layers is None
    for item in file.slices:
        sources = list(item.sources)
        # NOTE: sorted is stable.
        row = sorted(sources, key=lambda source: source.model != item.base)
        has_base = item.base is not None and row[0].model == item.base
        if item.base is not None and not has_base and (needs_base or listed_models):
            row.insert(0, Source(item.base, Level("base_model", {}), row[0].layers))
        rows.append(row)
    if len({len(row) for row in rows}) > 1:
        counts = [len(row) for row in rows]
        rule = "every slice must merge as many models as the first"
        file.problem("slices", rule, counts, "Change sources in")
    if len(file.problems) > num_problems or not rows:
        return None
    slots = tuple(Slot(sources) for sources in zip(*rows, strict=True))
    has_base = all(
        item.base == source.model
        for item, source in zip(file.slices, slots[0].sources, strict=True)
    )
    return Arrangement(file.slices, slots, has_base)


def reference(model: MergekitModel | Layers, name: str, base: object) -> dict[str, Any]:
    """Return a model as a recipe refers to it.

    Args:
        model: A model, or a stack.
        name: Its name in the recipe.
        base: The recipe's base: an adapter on it needs no word of it.
    """
    if not isinstance(model, MergekitModel):
        parts = [
            {"model": reference(part, _stem(part), None), "layers": f"{start}-{stop - 1}"}
            for part, start, stop in model
        ]
        return {"name": name, "stack": parts}
    ref: dict[str, Any] = {"name": name, **model.source()}
    if model.under is not None and model.under != base:
        ref["on"] = reference(model.under, _stem(model.under), None)
    return ref


def model_names(models: Iterable[MergekitModel | Layers]) -> dict[MergekitModel | Layers, str]:
    """Name models by the last part of their path, made unique and fit for dotted paths."""
    names: dict[MergekitModel | Layers, str] = {}
    for model in dict.fromkeys(models):
        stem = _stem(model) if isinstance(model, MergekitModel) else f"{_stem(model[0][0])}-stack"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model] = name
    return names


def _stem(model: MergekitModel) -> str:
    last = re.sub(r"[^A-Za-z0-9_-]+", "-", model.path.rstrip("/").rsplit("/", 1)[-1])
    return (last.strip("-_") or "model")[:56]


Value = Callable[[str, int | None, float | None], Setting | None]
"""A parameter by name, place among the merged models (None for the whole merge) and default."""

_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
_ELECTED = ("ties", "dare_ties", "della", "breadcrumbs_ties")
_TASK_VECTORS = (
    "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs",
    "breadcrumbs_ties",
)  # fmt: skip

_PER_MODEL, _WHOLE = True, False
_TASK_KEYS = {
    "weight": _PER_MODEL,
    "density": _PER_MODEL,
    "lambda": _WHOLE,
    "normalize": _WHOLE,
    "rescale": _WHOLE,
    "int8_mask": _WHOLE,
}


def _task_keys(name: str) -> dict[str, bool]:
    keys = dict(_TASK_KEYS)
    if name.startswith("breadcrumbs"):
        keys["gamma"] = _PER_MODEL
    if name.startswith("della"):
        keys["epsilon"] = _PER_MODEL
    return keys


READ: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {
        "linear": {"weight": _PER_MODEL, "normalize": _WHOLE},
        "slerp": {"t": _WHOLE},
        "nuslerp": {
            "weight": _PER_MODEL,
            "nuslerp_flatten": _WHOLE,
            "nuslerp_row_wise": _WHOLE,
        },
        "multislerp": {"weight": _PER_MODEL, "normalize_weights": _WHOLE, "eps": _WHOLE},
        "karcher": {"max_iter": _WHOLE, "tol": _WHOLE},
        "passthrough": {"scale": _PER_MODEL},
        "model_stock": {"filter_wise": _WHOLE},
        "sce": {"select_topk": _WHOLE, "int8_mask": _WHOLE},
        "arcee_fusion": {},
        "nearswap": {"t": _WHOLE},
        "ram": {"epsilon": _WHOLE},
        "ramplus_tl": {"r": _WHOLE, "alpha": _WHOLE, "epsilon": _WHOLE},
        **{name: _task_keys(name) for name in _TASK_VECTORS},
    }
)
"""Parameters that mergekit reads, by method: whether each model may have its own."""

SUPPORTED = tuple(READ)
NEEDS_BASE = frozenset(
    {"slerp", "model_stock", "sce", "arcee_fusion", "nearswap", "ram", "ramplus_tl"}
    | {*_TASK_VECTORS}
)
"""Methods that measure from a base model."""
TAKES_BASE = frozenset({"nuslerp", "multislerp"})
"""Methods that measure from a base model where there is one."""


class MethodWriter:
    """Writes a method's document; coefficients in it are `Setting`s yet to be resolved.

    Args:
        file: The file; collects what is wrong.
        names: Names of the merged models, the base aside where the method measures from it.
        base: The base's name; None where the method does not measure from it.
        value: Gives a parameter.
    """

    def __init__(
        self, file: MergekitFile, *, names: Sequence[str], base: str | None, value: Value
    ) -> None:
        self._file = file
        self._names = names
        self._base = base
        self._value = value

    def method(self) -> dict[str, Any] | None:
        """Return the document; None if too few or too many models are merged."""
        name = self._file.name
        if not self._counts_fit():
            return None
        writers: dict[str, Callable[[], dict[str, Any]]] = {
            "linear": self._linear,
            "slerp": self._slerp,
            "nuslerp": self._nuslerp,
            "multislerp": self._multislerp,
            "karcher": self._karcher,
            "passthrough": self._passthrough,
            "model_stock": self._model_stock,
            "sce": self._sce,
            "arcee_fusion": self._arcee_fusion,
            "nearswap": self._nearswap,
            "ram": self._ram,
            "ramplus_tl": self._ram,
        }
        return writers.get(name, self._task_vectors)()

    def _counts_fit(self) -> bool:
        limits: dict[str, tuple[int, int | None, str]] = {
            "slerp": (1, 1, "slerp takes the base and one model"),
            "arcee_fusion": (1, 1, "arcee_fusion takes the base and one model"),
            "nearswap": (1, 1, "nearswap takes the base and one model"),
            "nuslerp": (2, 2, "nuslerp takes two models besides a base"),
            "passthrough": (1, 1, "passthrough takes one model for each slice"),
        }
        low, high, rule = limits.get(
            self._file.name, (1, None, "must list a model besides the base")
        )
        count = len(self._names)
        if count < low or (high is not None and count > high):
            self._file.problem("models", rule, count or None, "Change" if count else "Add to")
            return False
        return True

    def _linear(self) -> dict[str, Any]:
        normalize = self._flag("normalize", default=True)
        return {"name": "linear", "weights": self._by_model("weight"), "normalize": normalize}

    def _slerp(self) -> dict[str, Any]:
        models = [self._base, *self._names]
        return {"name": "slerp", "models": models, "t": self._value("t", None, None)}

    def _nuslerp(self) -> dict[str, Any]:
        flat = self._flag("nuslerp_flatten", default=True)
        by_column = self._flag("nuslerp_row_wise", default=False)
        return {
            "name": "nuslerp",
            "weights": self._by_model("weight"),
            "origin": "zero" if self._base is None else "base",
            "vectors": "tensor" if flat else "columns" if by_column else "rows",
        }

    def _multislerp(self) -> dict[str, Any]:
        self._number("eps", 1e-8)
        return {
            "name": "multi_slerp",
            "weights": self._by_model("weight"),
            "variant": "mergekit",
            "normalize": self._flag("normalize_weights", default=True),
            "origin": "zero" if self._base is None else "base",
        }

    def _karcher(self) -> dict[str, Any]:
        return {
            "name": "karcher",
            "weights": dict.fromkeys(self._names, 1.0),
            "num_steps": self._number("max_iter", 10, whole=True),
            "tolerance": self._number("tol", 1e-5),
        }

    def _passthrough(self) -> dict[str, Any]:
        return {
            "name": "passthrough",
            "models": list(self._names),
            "scale": self._value("scale", 0, 1.0),
        }

    def _model_stock(self) -> dict[str, Any]:
        return {
            "name": "model_stock",
            "models": list(self._names),
            "variant": "mergekit",
            "vectors": "rows" if self._flag("filter_wise", default=False) else "tensor",
        }

    def _sce(self) -> dict[str, Any]:
        return {
            "name": "sce",
            "models": list(self._names),
            "density": self._value("select_topk", None, 1.0),
            "variant": "mergekit",
        }

    def _arcee_fusion(self) -> dict[str, Any]:
        return {"name": "arcee_fusion", "models": list(self._names)}

    def _nearswap(self) -> dict[str, Any]:
        models = list(self._names)
        return {"name": "nearswap", "models": models, "t": self._value("t", None, None)}

    def _ram(self) -> dict[str, Any]:
        method: dict[str, Any] = {
            "name": "ram",
            "models": list(self._names),
            "epsilon": self._value("epsilon", None, 1e-5),
        }
        if self._file.name == "ramplus_tl":
            method["boost"] = self._value("r", None, 0.1)
            method["boost_cap"] = self._value("alpha", None, 0.2)
        return method

    def _task_vectors(self) -> dict[str, Any]:
        name = self._file.name
        method: dict[str, Any] = {
            "name": name,
            "weights": self._by_model("weight"),
            "lambda": self._value("lambda", None, 1.0),
        }
        if name != "task_arithmetic":
            method["density"] = self._by_model("density", 1.0)
        for key, default in (("gamma", 0.01), ("epsilon", 0.15)):
            if key not in READ[name]:
                continue
            own = self._by_model(key, default)
            first = next(iter(own.values()))
            shared = all(item == first for item in own.values())
            method.update({key: first} if shared else {f"{key}_by_expert": own})
        method["normalize"] = self._flag("normalize", default=name in ("ties", "della"))
        if name in _ELECTED and method["normalize"] and _has_negative(method["weights"]):
            method["divisor"] = "signed"
        rescale = self._flag("rescale", default=name in _RANDOM)
        if name != "task_arithmetic":
            method["rescale"] = "l1" if rescale else "none"
        return method

    def _by_model(self, key: str, default: float | None = None) -> dict[str, Setting | None]:
        return {name: self._value(key, at, default) for at, name in enumerate(self._names)}

    def _flag(self, key: str, *, default: bool) -> bool:
        given = self._one(key)
        if given is None:
            return default
        if not isinstance(given[1], bool | int | float):
            self._file.problem(given[0], "must be true or false", given[1], "Change")
            return default
        return bool(given[1])

    def _number(self, key: str, default: float, *, whole: bool = False) -> float:
        given = self._one(key)
        if given is None:
            return default
        place, value = given
        if not is_number(value) or (whole and not isinstance(value, int)):
            rule = f"must be a {'whole ' if whole else ''}number"
            self._file.problem(place, rule, value, "Change")
            return default
        return value

    def _one(self, key: str) -> tuple[str, Any] | None:
        """Return place and value of what the whole merge has one of; None where it is left out."""
        found = [
            next(
                (
                    (f"{level.place}.{key}", level.parameters[key])
                    for level in item.shared
                    if level.parameters.get(key) is not None
                ),
                None,
            )
            for item in self._file.slices
        ]
        if any((item and item[1]) != (found[0] and found[0][1]) for item in found):
            place = next(item[0] for item in found if item is not None)
            self._file.problem(place, "must be the same in every slice", None, "Change")
        return found[0]


def _has_negative(settings: Mapping[str, Setting | None]) -> bool:
    return any(
        number < 0.0
        for setting in settings.values()
        if setting is not None
        for entries in setting.slices
        for entry in entries
        for number in leaves(entry.value)
    )
