"""Two experts with a weight at each of four depths: skill sits late, harm in the middle."""

import math
from collections.abc import Mapping

EXPERTS = ("skill", "safety")
SPACE = {f"{name}.{depth}": {"low": 0.0, "high": 1.0} for name in EXPERTS for depth in range(4)}
OBJECTIVES = {
    "accuracy": {"direction": "maximize", "reference": 0.2},
    "harm": {"direction": "minimize", "reference": 1.0},
}
PROMPTS = {"accuracy": 128, "harm": 100}


def truth(params: Mapping[str, float]) -> dict[str, float]:
    """Return the shares that endless prompts would show, with weights at any number of depths."""
    depths = len(params) // len(EXPERTS)
    gain = lost = push = 0.0
    for depth in range(depths):
        place = depth / (depths - 1)
        late, middle = 0.2 + place**2, math.exp(-(((place - 0.5) / 0.25) ** 2))
        skill, safety = params[f"skill.{depth}"], params[f"safety.{depth}"]
        gain += late * skill / depths
        lost += (0.2 + late) * safety**2 * (0.5 + skill) / depths
        push += ((0.25 + middle) * skill - (0.1 + 1.3 * middle) * safety) / depths
    accuracy = 0.35 + 0.6 * (1.0 - math.exp(-4.5 * gain)) - 0.35 * lost
    return {"accuracy": max(0.0, accuracy), "harm": 0.02 + 0.96 / (1.0 + math.exp(-14.0 * push))}
