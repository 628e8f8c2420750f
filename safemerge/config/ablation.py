"""A recipe with one of its parts left out: a parent, an operator, a group of layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import combinations, pairwise
from math import lcm
from typing import Any, Literal, NamedTuple, get_args

from pydantic import ValidationError

from safemerge.config.coefficient import DEFAULT_GROUP, Number, leaves
from safemerge.config.method import METHODS
from safemerge.config.recipe import MergeRecipe

PartKind = Literal["parent", "operator", "layers"]
"""What is left out: a merged model; a step or what the method does to entries; layers' changes."""

PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)

MAX_SHAPLEY_PARENTS = 6
"""Shapley values take a merge for every set of parents: 64 for six."""

NUM_DEPTH_BLOCKS = 4
"""Blocks of consecutive layers, where the recipe has no groups of its own."""

REST = "outside the layers"
"""Name of what no block of layers covers: embeddings, final norm, output head."""

_WITHOUT_ELECTION = {
    "ties": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs",
    "dare_ties": "dare_linear",
    "della": "della_linear",
}

_Document = dict[str, Any]


class Variant(NamedTuple):
    """A recipe without one of its parts."""

    kind: PartKind
    name: str
    """The part that is left out, e.g. an expert's name."""
    recipe: MergeRecipe | None
    """None if the method cannot do without it."""
    reason: str | None = None
    """Why there is no recipe, if so."""


def parents_of(recipe: MergeRecipe) -> list[str]:
    """Return the models that a recipe merges, in its order of experts; not the base.

    One whose weight is zero everywhere is none; nor is one that only a step reads.
    """
    weights = getattr(recipe.method, "weights", None)
    merged = {
        name
        for name in recipe.method.model_names()
        if weights is None or any(leaves(weights[name]))
    }
    return [ref.name for ref in recipe.experts if ref.name in merged]


def with_parents(recipe: MergeRecipe, kept: Collection[str]) -> MergeRecipe:
    """Return a recipe in which the task vectors of all parents but some are left out.

    A left-out parent's weight becomes zero; in means of whole models it goes to the base, so that
    the others keep theirs. Where the base cannot take it (`fisher` and `regmean` without
    statistics of the base) the others share it. Without any parent the base is merged alone;
    steps after the method stay.

    Args:
        recipe: Any recipe.
        kept: Those of `parents_of` that stay.
    """
    dropped = [name for name in parents_of(recipe) if name not in kept]
    if not dropped:
        return recipe
    if not set(parents_of(recipe)) & set(kept):
        return _base_alone(recipe)
    document = recipe.resolved()
    method, base = document["method"], recipe.base.name
    if "models" in method:
        stays = base if method["name"] == "slerp" else None
        found = [name if name not in dropped else stays for name in method["models"]]
        method["models"] = [name for name in found if name is not None]
        return _validated(document, merged=method["models"])
    if not recipe.method.takes_base:
        method["weights"].update(dict.fromkeys(dropped, 0.0))
        return _validated(document)
    weights: dict[str, Number] = dict(method["weights"])
    for name in dropped:
        moved = weights.pop(name)
        weights[base] = added(weights[base], moved) if base in weights else moved
    if recipe.method.statistic is not None and recipe.base.statistics is None:
        weights = {**method["weights"], **dict.fromkeys(dropped, 0.0)}
    method["weights"] = weights
    return _validated(document, merged=list(weights))


def coalitions(recipe: MergeRecipe) -> dict[frozenset[str], MergeRecipe]:
    """Return the recipe of every set of parents, see `with_parents`; the whole recipe is last."""
    parents = parents_of(recipe)
    return {
        frozenset(kept): with_parents(recipe, kept)
        for size in range(len(parents) + 1)
        for kept in combinations(parents, size)
    }


def without_parents(recipe: MergeRecipe) -> list[Variant]:
    """Return a recipe without each of its parents, see `with_parents`."""
    parents = parents_of(recipe)

    def without(name: str) -> MergeRecipe:
        return with_parents(recipe, [other for other in parents if other != name])

    return [_variant("parent", name, without, name) for name in parents]


def without_operators(recipe: MergeRecipe) -> list[Variant]:
    """Return a recipe without each of its operators.

    These are its steps; the method's sparsification (density 1); its election of signs, for which
    the plain sum (or mean) of the same entries is taken; and the masks of `consensus_ta`.
    """
    found = [
        _variant("operator", f"step {step.name}", _without_step, recipe, step.name)
        for step in recipe.steps
    ]
    method = recipe.resolved()["method"]
    if any(value < 1.0 for value in _values(method.get("density", 1.0))):
        found.append(_variant("operator", "sparsification", _dense, recipe))
    if method["name"] in _WITHOUT_ELECTION:
        found.append(_variant("operator", "sign election", _unelected, recipe))
    if method["name"] == "consensus_ta":
        found.append(_variant("operator", "consensus mask", _unmasked, recipe))
    return found


def without_layers(recipe: MergeRecipe, *, num_layers: int) -> list[Variant]:
    """Return a recipe whose method leaves the base as it is in each group of layers.

    Groups are the recipe's own. One without any is cut into `NUM_DEPTH_BLOCKS` blocks of layers
    and the rest; attention and feed-forward modules follow, which share tensors with the blocks.

    Args:
        recipe: Any recipe.
        num_layers: Decoder layers of its models, at least 1.
    """
    own = [group.resolved() for group in recipe.layer_groups]
    if own:
        names = [group["name"] for group in own]
        has_rest = any(
            isinstance(value, dict) and DEFAULT_GROUP in value
            for _, value in recipe.coefficients()
        )
        names += [DEFAULT_GROUP] if has_rest else []
        return [
            _variant(
                "layers",
                f"group {name}" if name != DEFAULT_GROUP else "outside the groups",
                _reset,
                recipe,
                own,
                name,
            )
            for name in names
        ]
    blocks = [
        {"name": f"layers-{first}-{last}", "layers": f"{first}-{last}"}
        for first, last in _blocks(num_layers)
    ]
    kinds = [{"name": kind, "kind": kind} for kind in ("attention", "mlp")]
    return [
        *(
            _variant("layers", f"layers {item['layers']}", _reset, recipe, [item], item["name"])
            for item in blocks
        ),
        _variant("layers", REST, _reset, recipe, blocks, DEFAULT_GROUP),
        *(
            _variant("layers", item["name"], _reset, recipe, [item], item["name"])
            for item in kinds
        ),
    ]


def added(one: Number, other: Number) -> Number:
    """Return the sum of two coefficients, exact between their anchors too.

    Groups that only one of them names take the other's ``default``.
    """
    if isinstance(one, dict) or isinstance(other, dict):
        sides = [
            side if isinstance(side, dict) else {DEFAULT_GROUP: side} for side in (one, other)
        ]
        names = dict.fromkeys(name for side in sides for name in side)
        total: dict[str, float | list[float]] = {}
        for name in names:
            parts = [side.get(name, side.get(DEFAULT_GROUP)) for side in sides]
            if parts[0] is not None and parts[1] is not None:
                total[name] = _added_by_depth(parts[0], parts[1])
        return total
    return _added_by_depth(one, other)


def _added_by_depth(one: float | list[float], other: float | list[float]) -> float | list[float]:
    if not isinstance(one, list) and not isinstance(other, list):
        return one + other
    steps = lcm(*(len(side) - 1 for side in (one, other) if isinstance(side, list)))
    return [_at(one, place / steps) + _at(other, place / steps) for place in range(steps + 1)]


def _at(value: float | list[float], depth: float) -> float:
    if not isinstance(value, list):
        return value
    place = depth * (len(value) - 1)
    left = min(int(place), len(value) - 2)
    share = place - left
    return value[left] * (1 - share) + value[left + 1] * share


def _blocks(num_layers: int) -> Iterator[tuple[int, int]]:
    count = min(NUM_DEPTH_BLOCKS, num_layers)
    edges = [round(place * num_layers / count) for place in range(count + 1)]
    yield from ((first, after - 1) for first, after in pairwise(edges))


def _variant(
    kind: PartKind, name: str, make: Callable[..., MergeRecipe], *arguments: object
) -> Variant:
    try:
        return Variant(kind, name, make(*arguments))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        return Variant(kind, name, None, f"the method cannot do without it: {reason}")
    except _Needed as error:
        return Variant(kind, name, None, str(error))


class _Needed(Exception):
    """The method has no value for which the part is left out."""


def _base_alone(recipe: MergeRecipe) -> MergeRecipe:
    document = recipe.resolved()
    base = recipe.base.name
    document["method"] = {"name": "linear", "weights": {base: 1.0}}
    document["layer_groups"] = document["layer_groups"] if _uses_groups(recipe) else []
    return _validated(document, merged=[base])


def _uses_groups(recipe: MergeRecipe) -> bool:
    return any(
        isinstance(value, dict) for step in recipe.steps for _, value in step.coefficients()
    )


def _without_step(recipe: MergeRecipe, name: str) -> MergeRecipe:
    document = recipe.resolved()
    document["steps"] = [step for step in document["steps"] if step["name"] != name]
    return _validated(document)


def _dense(recipe: MergeRecipe) -> MergeRecipe:
    document = recipe.resolved()
    method = document["method"]
    method["density"] = 1.0
    if "gamma" in method:
        method["gamma"] = 0.0
        method.pop("gamma_by_expert", None)
    return _validated(document)


def _unelected(recipe: MergeRecipe) -> MergeRecipe:
    document = recipe.resolved()
    method = document["method"]
    name = _WITHOUT_ELECTION[method["name"]]
    fields = METHODS[name].spec.model_fields
    known = {info.alias or field for field, info in fields.items()}
    found = {key: value for key, value in method.items() if key in known}
    # What `breadcrumbs` does beyond a trim is no part of `ties`.
    found |= {"gamma": 0.0} if method["name"] == "ties" else {}
    document["method"] = {**found, "name": name}
    return _validated(document)


def _unmasked(recipe: MergeRecipe) -> MergeRecipe:
    document = recipe.resolved()
    document["method"] |= {"mask_threshold": 0.0, "min_agreeing": 1}
    return _validated(document)


def _reset(recipe: MergeRecipe, groups: list[_Document], name: str) -> MergeRecipe:
    document = recipe.resolved()
    document["layer_groups"] = groups
    method, base = document["method"], recipe.base.name
    names = [group["name"] for group in groups]
    if "lambda" in method:
        method["lambda"] = _set_in(method["lambda"], name, 0.0, names)
    elif method["name"] == "slerp" and base in method["models"]:
        place = float(method["models"].index(base))
        method["t"] = _set_in(method["t"], name, place, names)
    elif "weights" in method and recipe.method.takes_base:
        weights = {base: 0.0, **method["weights"]}
        method["weights"] = {
            model: _set_in(value, name, float(model == base), names)
            for model, value in weights.items()
        }
    else:
        raise _Needed(f"{method['name']} has no coefficient that gives the base there")
    return _validated(document)


def _set_in(value: Number, name: str, at: float, groups: list[str]) -> Number:
    """Set a coefficient in one group and leave it elsewhere."""
    if isinstance(value, dict):
        return {**value, name: at}
    if name == DEFAULT_GROUP:
        return {**dict.fromkeys(groups, value), name: at}
    return {name: at, DEFAULT_GROUP: value}


def _validated(document: _Document, *, merged: Collection[str] | None = None) -> MergeRecipe:
    """Return the recipe of a document; where other models are merged, steps name those alone."""
    if merged is not None:
        base = document["base"]["name"]
        document["steps"] = [
            step for item in document["steps"] if (step := _step_of(item, base, merged))
        ]
    return MergeRecipe.model_validate(document)


def _step_of(step: _Document, base: str, merged: Collection[str]) -> _Document | None:
    if step["on"] == "merged":
        return step
    experts = [name for name in merged if name != base]
    named = step.get("experts")
    reads = {step.get(field) for field in ("aligned", "unaligned", "safe", "before")}
    kept = [name for name in experts if name in (named or set(experts) - reads)]
    if not kept:
        return None
    found = dict(step)
    if named is not None:
        found["experts"] = [name for name in named if name in kept]
    if isinstance(step.get("density"), dict):
        found["density"] = {name: step["density"][name] for name in experts}
    return found


def _values(number: object) -> Iterator[float]:
    """Yield the numbers of a coefficient, also of one by expert and group."""
    if isinstance(number, dict):
        for item in number.values():
            yield from _values(item)
    elif isinstance(number, list):
        yield from number
    elif isinstance(number, float | int):
        yield float(number)
