"""Two weights, as the package's own landscape: skill falls with the misfit, harm grows.

The front is the line a + b = 1; accuracy is a on it, harm a squared.
"""

from collections.abc import Mapping

SPACE = {"skill": {"low": 0.0, "high": 1.0}, "safety": {"low": 0.0, "high": 1.0}}
OBJECTIVES = {
    "accuracy": {"direction": "maximize", "reference": 0.0},
    "harm": {"direction": "minimize", "reference": 1.0},
}
PROMPTS = {"accuracy": 128, "harm": 100}


def truth(params: Mapping[str, float]) -> dict[str, float]:
    """Return the shares that endless prompts would show."""
    skill, safety = params["skill"], params["safety"]
    misfit = min(1.0, abs(skill + safety - 1.0))
    return {
        "accuracy": skill * (1.0 - misfit),
        "harm": skill**2 + misfit * (1.0 - skill**2),
    }
