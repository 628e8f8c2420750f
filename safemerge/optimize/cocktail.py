"""LM-Cocktail: weights of whole models from their losses on a few examples.

References:
    Xiao et al., LM-Cocktail, arXiv:2311.13534, equation 3; with safety data among the examples
    as in arXiv:2406.14563, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.optimize.objective import PairLosses
from safemerge.optimize.optimizer import (
    OptimizeStep,
    Score,
    check_step_is_finite,
    parent_recipes,
)
from safemerge.optimize.spec import LmCocktail, OptimizeSpec


def cocktail_weights(
    loss_by_model: Mapping[str, float], *, temperature: float
) -> dict[str, float]:
    """Return softmax(-loss_i / T).

    Args:
        loss_by_model: Loss by model name, in nats, lower is better; at least one, all finite.
        temperature: T, above 0.

    Returns:
        Weight by model name, in [0, 1], summing to 1.
    """
    least = min(loss_by_model.values())
    raw = {name: math.exp((least - x) / temperature) for name, x in loss_by_model.items()}
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


class CocktailSearch:
    """One step a model: its loss on D_safety and D_expert together, half and half.

    The paper's sets are of one size, so that its union weighs them alike. With the objective
    ``expert`` the loss is that on D_expert alone; alpha plays no part.

    Args:
        spec: The declared optimisation, with the optimiser ``lm_cocktail``.
        score: Losses of a recipe.
    """

    def __init__(self, spec: OptimizeSpec, score: Score) -> None:
        assert isinstance(spec.optimizer, LmCocktail), "made for this optimiser"
        self._spec, self._settings, self._score = spec, spec.optimizer, score
        self._parents = parent_recipes(spec)
        names = [ref.name for ref in spec.experts]
        self._models = [spec.base.name, *names] if self._settings.include_base else names
        self._weights = (0.0, 1.0) if spec.objective == "expert" else (0.5, 0.5)
        self._losses: dict[str, PairLosses] = {}

    @property
    def num_steps(self) -> int:
        """Models that are mixed."""
        return len(self._models)

    def step(self, step: int) -> OptimizeStep:
        """Score one model."""
        name = self._models[step]
        (found,) = self._score([self._parents[name]])
        check_step_is_finite(self._spec, step, f"the loss of '{name}'", sum(found))
        self._losses[name] = found
        loss = found.total(self._weights)
        return OptimizeStep(step + 1, loss, found.safety, found.expert)

    def recipe(self) -> MergeRecipe:
        """Return the linear mix; call it after the last step."""
        losses = {name: found.total(self._weights) for name, found in self._losses.items()}
        weights = cocktail_weights(losses, temperature=self._settings.temperature)
        return MergeRecipe(
            base=self._spec.base,
            experts=self._spec.experts,
            method=Linear(name="linear", weights=dict(weights)),
            dtype=self._spec.dtype,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the losses so far."""
        return {"losses": {name: list(found) for name, found in self._losses.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        self._losses = {name: PairLosses(*found) for name, found in state["losses"].items()}
