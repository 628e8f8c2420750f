"""Three weights: a clean expert, a misaligned one that adds skill, and a safety expert.

Skill saturates in the experts' sum and falls when the safety expert is overdone; harm has a cliff
where the misaligned expert outweighs safety.
"""

import math
from collections.abc import Mapping

SPACE = {name: {"low": 0.0, "high": 1.0} for name in ("clean", "misaligned", "safety")}
OBJECTIVES = {
    "accuracy": {"direction": "maximize", "reference": 0.3},
    "harm": {"direction": "minimize", "reference": 1.0},
}
PROMPTS = {"accuracy": 128, "harm": 100}


def truth(params: Mapping[str, float]) -> dict[str, float]:
    """Return the shares that endless prompts would show."""
    clean, misaligned, safety = params["clean"], params["misaligned"], params["safety"]
    skill = 0.45 + 0.45 * (1.0 - math.exp(-1.6 * clean - 2.2 * misaligned))
    skill -= 0.25 * safety**2 + 0.2 * max(0.0, clean + misaligned - 1.2) ** 2
    push = 6.0 * (0.15 + 0.55 * clean + 1.1 * misaligned - 0.9 * safety + 0.4 * clean * misaligned)
    return {"accuracy": skill, "harm": 0.02 + 0.96 / (1.0 + math.exp(2.0 - push))}
