"""One merge of a base and two experts by every method, as a file that both tools take."""

from __future__ import annotations


def merge_document(method, folders):
    """A mergekit file, which both take, or a recipe where mergekit lacks the method."""
    paths = {name: str(path) for name, path in folders.items()}
    experts = [name for name in paths if name != "base"]
    if method == "consensus_ta":
        refs = [{"name": name, "path": path} for name, path in paths.items()]
        way = {"name": method, "weights": {"expert1": 0.6, "expert2": 0.4}, "min_agreeing": 1}
        return {"base": refs[0], "experts": refs[1:], "method": way}
    document = {"merge_method": method, "dtype": "bfloat16"}
    if method in ("linear", "karcher", "multislerp"):
        weights = dict(zip(paths, (0.5, 0.3, 0.2), strict=True))
        models = [{"model": paths[name]} for name in paths]
        for model, weight in zip(models, weights.values(), strict=True):
            if method != "karcher":
                model["parameters"] = {"weight": weight}
        return document | {"models": models}
    document["base_model"] = paths["base"]
    if method == "slerp":
        models = [{"model": paths["base"]}, {"model": paths["expert1"]}]
        return document | {"models": models, "parameters": {"t": 0.4}}
    document["models"] = [{"model": paths[name]} for name in experts]
    if method == "model_stock":
        return document
    for model, weight in zip(document["models"], (0.6, 0.4), strict=True):
        model["parameters"] = {"weight": weight}
        if method != "task_arithmetic":
            model["parameters"]["density"] = 0.5
        if method.startswith("della"):
            model["parameters"]["epsilon"] = 0.1
        if method.startswith("breadcrumbs"):
            model["parameters"]["gamma"] = 0.01
    return document


def merge_recipe(document):
    from safemerge.config.mergekit import is_mergekit, recipe_of_mergekit
    from safemerge.config.recipe import MergeRecipe

    if is_mergekit(document):
        document = recipe_of_mergekit(document, where="benchmark").document
    return MergeRecipe.model_validate(document)
