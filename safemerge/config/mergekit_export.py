"""A recipe as mergekit's YAML, where mergekit can express it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.coefficient import Number, leaves
from safemerge.config.mergekit_file import MergekitModel
from safemerge.config.recipe import MergeRecipe
from safemerge.config.tokenizer import TemplateText
from safemerge.errors import ConfigError

_NAMES = {
    "linear": "linear",
    "slerp": "slerp",
    "multi_slerp": "multislerp",
    "nuslerp": "nuslerp",
    "passthrough": "passthrough",
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
    "sce": "sce",
    "arcee_fusion": "arcee_fusion",
    "nearswap": "nearswap",
    "ram": "ram",
}
_PLAIN_PATTERN = re.compile(r"\*([^*?\[\]]+)\*")


def mergekit_of_recipe(recipe: MergeRecipe, *, adapters: Collection[str] = ()) -> dict[str, Any]:
    """Translate a recipe into a mergekit file.

    mergekit gives the same weights up to rounding (it computes in the file's ``dtype``), save
    that random masks are its own.

    Args:
        recipe: A recipe whose checkpoints are given by path, or by repository.
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
    path = {
        ref.name: _model(ref, ref.on or (recipe.base if ref.name in adapters else None))
        for ref in recipe.checkpoints
    }
    document = {"merge_method": _name(recipe), **_merge(recipe, path)}
    if recipe.dtype != "base":
        document["dtype"] = recipe.dtype
    owner = path.get(recipe.tokenizer.from_ or "")
    source = {"refuse": None, "tokenizer": owner}.get(recipe.vocabulary, recipe.vocabulary)
    if source is not None and recipe.tokenizer.rows:
        document["tokenizer"] = {"source": source, **_rows(recipe, path)}
    elif source is not None:
        document["tokenizer_source"] = source
    if isinstance(recipe.tokenizer.chat_template, TemplateText):
        document["chat_template"] = recipe.tokenizer.chat_template.text
    return document


def _model(ref: CheckpointRef, host: CheckpointRef | None) -> str | dict[str, Any]:
    """Return a model's name: its repository where it is of the hub, else its folder."""
    place, revision = _place(ref)
    under = (None, None) if host is None else _place(host)
    return MergekitModel(place, under[0], revision, under[1]).written()


def _place(ref: CheckpointRef) -> tuple[str, str | None]:
    return (str(ref.path), None) if ref.hub is None else (ref.hub, ref.revision)


def _rows(recipe: MergeRecipe, path: Mapping[str, str | dict[str, Any]]) -> dict[str, Any]:
    """Return how a tokenizer's rows are chosen."""
    choice, tokens = recipe.tokenizer, {}
    for token, row in choice.tokens.items():
        source: Any = {"kind": "zero"} if row.from_ is None else path[row.from_]
        if row.from_ is not None and row.token is not None:
            key = "token" if isinstance(row.token, str) else "token_id"
            source = {"kind": "model_token", "model": source, key: row.token}
        tokens[token] = {"source": source, **({"force": True} if row.force else {})}
    multiple = choice.pad_to_multiple_of
    return {
        **({"tokens": tokens} if tokens else {}),
        **({} if multiple is None else {"pad_to_multiple_of": multiple}),
    }


def _name(recipe: MergeRecipe) -> str:
    boosted = recipe.method.name == "ram" and recipe.method.boost != 0.0
    return "ramplus_tl" if boosted else _NAMES[recipe.method.name]


def _merge(recipe: MergeRecipe, path: Mapping[str, str | dict[str, Any]]) -> dict[str, Any]:
    """Return base model, models and parameters of the file."""
    filters = {
        group.name: match.group(1)
        for group in recipe.layer_groups
        for pattern in group.tensors or ()
        if (match := _PLAIN_PATTERN.fullmatch(pattern)) is not None
    }
    method, base = recipe.method, {"base_model": path[recipe.base.name]}
    named = [{"model": path[model]} for model in getattr(method, "models", ())]
    weighted = _models(recipe, path, filters)
    origin = base if getattr(method, "origin", "zero") == "base" else {}
    match method.name:
        case "slerp":
            start = {"base_model": path[method.models[0]]}
            return {**start, "models": named, "parameters": {"t": _setting(method.t, filters)}}
        case "passthrough":
            return {"models": named, "parameters": {"scale": _setting(method.scale, filters)}}
        case "model_stock":
            rows = {"parameters": {"filter_wise": True}} if method.vectors == "rows" else {}
            return {**base, "models": named, **rows}
        case "sce":
            density = _setting(method.density, filters)
            return {**base, "models": named, "parameters": {"select_topk": density}}
        case "arcee_fusion":
            return {**base, "models": named}
        case "nearswap":
            return {**base, "models": named, "parameters": {"t": _setting(method.t, filters)}}
        case "ram":
            own = {"epsilon": method.epsilon}
            if method.boost != 0.0:
                own |= {"r": method.boost, "alpha": method.boost_cap}
            parameters = {key: _setting(value, filters) for key, value in own.items()}
            return {**base, "models": named, "parameters": parameters}
        case "karcher":
            models = [{"model": path[model]} for model in method.weights]
            parameters = {"max_iter": method.num_steps, "tol": method.tolerance}
            return {"models": models, "parameters": parameters}
        case "linear":
            return {"models": weighted, "parameters": {"normalize": method.normalize}}
        case "multi_slerp":
            parameters = {"normalize_weights": method.normalize}
            return {**origin, "models": weighted, "parameters": parameters}
        case "nuslerp":
            flat, columns = method.vectors == "tensor", method.vectors == "columns"
            vectors = {"nuslerp_flatten": flat, "nuslerp_row_wise": columns}
            return {**origin, "models": weighted, "parameters": vectors}
    return {**base, "models": weighted, "parameters": _parameters(recipe, filters)}


def _problems(recipe: MergeRecipe) -> Iterator[str]:
    """Yield what of a recipe mergekit has no word for."""
    method = recipe.method
    if method.name not in _NAMES:
        yield f"method {method.name!r}"
    for step in recipe.steps:
        yield f"the step {step.name!r}"
    for ref in recipe.checkpoints:
        if ref.stack is not None:
            yield f"model {ref.name!r}, a stack of layers"
        elif ref.path is None and ref.hub is None:
            yield f"model {ref.name!r} without a path"
    if isinstance(recipe.tokenizer.chat_template, str):
        yield f"the chat template of {recipe.tokenizer.chat_template!r}, which it takes as text"
    if recipe.tokenizer.from_ is not None and recipe.vocabulary != "tokenizer":
        yield f"the tokenizer of {recipe.tokenizer.from_!r} without vocabulary: tokenizer"
    for group in recipe.layer_groups:
        patterns = group.tensors or []
        plain = len(patterns) == 1 and _PLAIN_PATTERN.fullmatch(patterns[0])
        if group.layers or group.kind or group.outside or not plain:
            yield f"layer group {group.name!r} ({group.rule}), for filters are parts of names"
    if method.name == "multi_slerp" and method.variant != "mergekit":
        yield f"variant {method.variant!r}"
    if method.name == "karcher" and len({*map(str, method.weights.values())}) > 1:
        yield "different weights in a Karcher mean"
    lambda_ = getattr(method, "lambda_", 1.0)
    if not hasattr(method, "weights") and lambda_ != 1.0:
        yield f"lambda {lambda_} in {method.name}"
    if method.name == "sce" and method.variant != "mergekit":
        yield f"variant {method.variant!r}"
    if getattr(method, "variant", "mergekit") == "peft":
        yield "variant 'peft'"
    if getattr(method, "rescale", "l1") == "probability":
        yield "rescale 'probability' (mergekit has 'l1' and 'none')"
    if min((item for at in _gammas(recipe) for item in leaves(at)), default=1.0) == 0.0:
        yield "gamma 0, which mergekit takes for dropping everything"
    if getattr(method, "normalize", False) and getattr(method, "divisor", "") == "magnitude":
        weights = getattr(method, "weights", {}).values()
        if any(item < 0.0 for weight in weights for item in leaves(weight)):
            yield "a negative weight in a normalised election, whose sign mergekit divides out"


def _gammas(recipe: MergeRecipe) -> list[Number]:
    own = getattr(recipe.method, "gamma_by_expert", None)
    gamma = getattr(recipe.method, "gamma", None)
    return [*own.values()] if own else [] if gamma is None else [gamma]


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
        for key in ("gamma", "epsilon"):
            by_expert = getattr(recipe.method, f"{key}_by_expert", None)
            if by_expert is not None:
                parameters[key] = _setting(by_expert[model], filters)
        models.append({"model": path[model], "parameters": parameters})
    return models


def _parameters(recipe: MergeRecipe, filters: dict[str, str]) -> dict[str, Any]:
    method = recipe.method
    parameters = {"lambda": _setting(getattr(method, "lambda_", 1.0), filters)}
    for key in ("gamma", "epsilon"):
        if hasattr(method, key) and getattr(method, f"{key}_by_expert") is None:
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
