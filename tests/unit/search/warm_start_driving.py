"""What the tests of warm starts share: recipes over a landscape's models, spaces, studies."""

from safemerge.testing.landscapes import landscape_study


def recipe(method="task_arithmetic", weights=None, **changes):
    weights = {"skill": 0.25, "safety": 0.75} if weights is None else weights
    spec = landscape_study()
    document = {
        "base": spec.base.resolved(),
        "experts": [expert.resolved() for expert in spec.experts],
        "method": {"name": method, "weights": weights, **changes.pop("method_fields", {})},
        "seed": spec.seed,
        **changes,
    }
    return document


def starting(*recipes, num_layers=4, **changes):
    started = [
        {"name": name, "recipe": document, "num_layers": num_layers}
        for name, document in zip("abcd", recipes, strict=False)
    ]
    return {**changes, "started": started}


def space(vary, weights=None, name="sum", method="task_arithmetic", **fields):
    groups = fields.pop("layer_groups", [])
    weights = weights or {"skill": 0.5, "safety": 0.5}
    return {
        "name": name,
        "method": {"name": method, "weights": weights, **fields},
        "layer_groups": groups,
        "vary": vary,
    }


UNIT = {"low": 0.0, "high": 1.0}
BOTH = {"method.weights.skill": UNIT, "method.weights.safety": UNIT}
