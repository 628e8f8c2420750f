"""A choice of method with parameters of its own: weights and scale for all, density for two."""

import math
from collections.abc import Mapping

SPACE = {
    "method": {"choices": ["task_arithmetic", "ties", "dare"]},
    "skill": {"low": 0.0, "high": 1.0},
    "safety": {"low": 0.0, "high": 1.0},
    "lambda": {"low": 0.3, "high": 1.5},
    "ties.density": {"low": 0.1, "high": 1.0, "when": {"method": "ties"}},
    "dare.density": {"low": 0.1, "high": 1.0, "when": {"method": "dare"}},
}
OBJECTIVES = {
    "accuracy": {"direction": "maximize", "reference": 0.2},
    "harm": {"direction": "minimize", "reference": 1.0},
}
PROMPTS = {"accuracy": 128, "harm": 100}


def truth(params: Mapping[str, float | str]) -> dict[str, float]:
    """Return the shares that endless prompts would show."""
    method, scale = str(params["method"]), float(params["lambda"])
    skill, safety = scale * float(params["skill"]), scale * float(params["safety"])
    density, clash = 1.0, 0.35
    if method != "task_arithmetic":
        density = float(params[f"{method}.density"])
        clash = 0.15 if method == "ties" else 0.25
    kept = 1.0 - (1.0 - density) ** (3 if method == "ties" else 5)
    noise = 0.0 if method != "dare" else 0.1 * (1.0 - density) ** 2
    accuracy = 0.35 + 0.55 * (1.0 - math.exp(-2.5 * skill * kept))
    accuracy -= clash * skill * safety * density + noise
    accuracy -= 0.3 * max(0.0, skill + safety - 1.6) ** 2
    push = 5.0 * (0.9 * skill * (0.4 + 0.6 * density) - 1.1 * safety * kept + 0.1)
    return {
        "accuracy": min(1.0, max(0.0, accuracy)),
        "harm": min(1.0, 0.03 + 0.94 / (1.0 + math.exp(1.0 - push)) + noise),
    }
