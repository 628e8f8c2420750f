"""A recipe as mergekit's YAML, where mergekit can express it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from safemerge.config.coefficient import Number, leaves
from safemerge.config.mergekit_model import MergekitModel
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import ConfigError

_NAMES = {
    "linear": "linear",
    "slerp": "slerp",
    "multi_slerp": "multislerp",
    "karcher": "karcher",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare_linear": "dare_linear",
    "dare_ties": "dare_ties",
    "della": "della",
    "della_linear": "della_linear",
    "breadcrumbs": "breadcrumbs",
    "breadcrumbs_ties": "breadcrumbs_ties",
    "model_stock": "model_stock",
}
_PLAIN_PATTERN = re.compile(r"\*([^*?\[\]]+)\*")


def mergekit_of_recipe(recipe: MergeRecipe, *, adapters: Collection[str] = ()) -> dict[str, Any]:
    """Translate a recipe into a mergekit file.

    mergekit gives the same weights up to rounding (it computes in the file's ``dtype``), save
    that random masks are its own.

    Args:
        recipe: A recipe whose checkpoints are given by path.
        adapters: Names of the experts that are LoRA adapters on the base; written as
            ``base+adapter``.

    Returns:
        The file's content as plain dicts and lists.

    Raises:
        ConfigError: If mergekit cannot express the recipe; names what.
    """
    problem = next(_problems(recipe), None)
    if problem is not None:
        raise ConfigError(
            f"recipe {recipe.digest[:4]}: mergekit cannot express it; got {problem}. "
            f"Keep the recipe in safemerge's own form."
        )
    base = str(recipe.base.path)
    path = {
        ref.name: MergekitModel(str(ref.path), base if ref.name in adapters else None).written()
        for ref in recipe.checkpoints
    }
    filters = {
        group.name: match.group(1)
        for group in recipe.layer_groups
        for pattern in group.tensors or ()
        if (match := _PLAIN_PATTERN.fullmatch(pattern)) is not None
    }
    method = recipe.method
    name = _NAMES[method.name]
    document: dict[str, Any] = {"merge_method": name}
    if method.name == "slerp":
        document["base_model"] = path[method.models[0]]
        document["models"] = [{"model": path[model]} for model in method.models]
        document["parameters"] = {"t": _setting(method.t, filters)}
    elif method.name == "model_stock":
        document["base_model"] = path[recipe.base.name]
        document["models"] = [{"model": path[model]} for model in method.models]
    elif method.name == "karcher":
        document["models"] = [{"model": path[model]} for model in method.weights]
        document["parameters"] = {"max_iter": method.num_steps, "tol": method.tolerance}
    elif method.name in ("linear", "multi_slerp"):
        document["models"] = _models(recipe, path, filters)
        if method.name == "linear":
            document["parameters"] = {"normalize": method.normalize}
    else:
        document["base_model"] = path[recipe.base.name]
        document["models"] = _models(recipe, path, filters)
        document["parameters"] = _parameters(recipe, filters)
    if recipe.dtype != "base":
        document["dtype"] = recipe.dtype
    if recipe.vocabulary != "refuse":
        document["tokenizer_source"] = recipe.vocabulary
    return document


def _problems(recipe: MergeRecipe) -> Iterator[str]:
    """Yield what of a recipe mergekit has no word for."""
    method = recipe.method
    if method.name not in _NAMES:
        yield f"method {method.name!r}"
    for step in recipe.steps:
        yield f"the step {step.name!r}"
    for ref in recipe.checkpoints:
        if ref.path is None:
            yield f"model {ref.name!r} without a path"
    for group in recipe.layer_groups:
        patterns = group.tensors or []
        plain = len(patterns) == 1 and _PLAIN_PATTERN.fullmatch(patterns[0])
        if group.layers is not None or group.kind is not None or not plain:
            yield f"layer group {group.name!r} ({group.rule}), for filters are parts of names"
    if method.name == "multi_slerp" and method.variant != "mergekit":
        yield f"variant {method.variant!r}"
    if method.name == "karcher" and len({*map(str, method.weights.values())}) > 1:
        yield "different weights in a Karcher mean"
    if method.name == "model_stock" and method.lambda_ != 1.0:
        yield f"lambda {method.lambda_} in Model Stock"
    if getattr(method, "variant", "mergekit") == "peft":
        yield "variant 'peft'"
    if getattr(method, "rescale", "l1") == "probability":
        yield "rescale 'probability' (mergekit has 'l1' and 'none')"
    if min((item for at in _gammas(recipe) for item in leaves(at)), default=1.0) == 0.0:
        yield "gamma 0, which mergekit takes for dropping everything"
    if getattr(method, "normalize", False) and method.name != "linear":
        weights = getattr(method, "weights", {}).values()
        if any(item < 0.0 for weight in weights for item in leaves(weight)):
            yield "a negative weight in a normalised election, whose sign mergekit divides out"


def _gammas(recipe: MergeRecipe) -> list[Number]:
    gamma = getattr(recipe.method, "gamma", None)
    return [] if gamma is None else [gamma]


def _models(
    recipe: MergeRecipe, path: Mapping[str, str | dict[str, Any]], filters: dict[str, str]
) -> list[dict[str, Any]]:
    weights: dict[str, Number] = getattr(recipe.method, "weights", {})
    density = getattr(recipe.method, "density", None)
    models = []
    for model, weight in weights.items():
        parameters = {"weight": _setting(weight, filters)}
        if density is not None:
            own = density[model] if isinstance(density, dict) else density
            parameters["density"] = _setting(own, filters)
        models.append({"model": path[model], "parameters": parameters})
    return models


def _parameters(recipe: MergeRecipe, filters: dict[str, str]) -> dict[str, Any]:
    method = recipe.method
    parameters = {"lambda": _setting(getattr(method, "lambda_", 1.0), filters)}
    for key in ("gamma", "epsilon"):
        if hasattr(method, key):
            parameters[key] = _setting(getattr(method, key), filters)
    parameters["normalize"] = getattr(method, "normalize", False)
    if hasattr(method, "rescale"):
        parameters["rescale"] = method.rescale == "l1"
    return parameters


def _setting(value: Number, filters: dict[str, str]) -> Any:
    if not isinstance(value, dict):
        return value
    default = value.get("default")
    listed = [
        {"filter": text, "value": value.get(group, default)} for group, text in filters.items()
    ]
    return listed if default is None else [*listed, {"value": default}]
