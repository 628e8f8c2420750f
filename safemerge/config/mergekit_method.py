"""Merge methods of mergekit as methods of a recipe, each in mergekit's variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from safemerge.config.coefficient import leaves
from safemerge.config.mergekit_coefficient import Setting
from safemerge.config.mergekit_file import MergekitFile
from safemerge.config.mergekit_setting import is_number

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
