"""Two experts with a weight at each of eight depths: skill sits late, harm in the middle."""

import math
from collections.abc import Mapping

DEPTHS = 8
SPACE = {
    f"{expert}.{depth}": {"low": 0.0, "high": 1.0}
    for expert in ("skill", "safety")
    for depth in range(DEPTHS)
}
OBJECTIVES = {
    "accuracy": {"direction": "maximize", "reference": 0.2},
    "harm": {"direction": "minimize", "reference": 1.0},
}
PROMPTS = {"accuracy": 128, "harm": 100}


def truth(params: Mapping[str, float]) -> dict[str, float]:
    """Return the shares that endless prompts would show."""
    gain = lost = push = 0.0
    for depth in range(DEPTHS):
        place = depth / (DEPTHS - 1)
        late, middle = 0.2 + place**2, math.exp(-(((place - 0.5) / 0.25) ** 2))
        skill, safety = params[f"skill.{depth}"], params[f"safety.{depth}"]
        gain += late * skill / DEPTHS
        lost += (0.2 + late) * safety**2 * (0.5 + skill) / DEPTHS
        push += ((0.25 + middle) * skill - (0.1 + 1.3 * middle) * safety) / DEPTHS
    accuracy = 0.35 + 0.6 * (1.0 - math.exp(-4.5 * gain)) - 0.35 * lost
    return {"accuracy": max(0.0, accuracy), "harm": 0.02 + 0.96 / (1.0 + math.exp(-14.0 * push))}
