"""Coefficients by CMA-ES, EvoMM's way: log-probabilities of given answers, no generation.

References:
    Akiba et al., arXiv:2403.13187, section 3.2 (CMA-ES over merge parameters); population, first
    step and number of evaluations as in arXiv:2406.14563, section 4.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import TrainingError
from safemerge.optimize.cma import CmaEs, Vector
from safemerge.optimize.coefficient_table import (
    CoefficientTable,
    coefficient_recipe,
    first_values,
)
from safemerge.optimize.objective import PairLosses, loss_weights
from safemerge.optimize.optimizer import UNSCORABLE, OptimizeStep, Score
from safemerge.optimize.spec import CmaEs as CmaEsSpec
from safemerge.optimize.spec import OptimizeSpec

LEAST_DENSITY = 0.05
"""Lower end of a searched density."""


class EvolutionSearch:
    """CMA-ES over the coefficients that change the merge, and a density if that is asked for.

    Args:
        spec: The declared optimisation, with the optimiser ``cma_es``.
        table: Which coefficients there are.
        score: Losses of a generation's recipes.
    """

    def __init__(self, spec: OptimizeSpec, table: CoefficientTable, score: Score) -> None:
        assert isinstance(spec.optimizer, CmaEsSpec), "made for this optimiser"
        self._spec, self._settings = spec, spec.optimizer
        self._table, self._score = table, score
        self._weights = loss_weights(spec.objective, spec.alpha)
        settings = self._settings
        mean = first_values(spec, table)[table.active].numpy()
        low, high = np.full_like(mean, settings.low), np.full_like(mean, settings.high)
        if settings.search_density:
            mean = np.append(mean, settings.density)
            low, high = np.append(low, LEAST_DENSITY), np.append(high, 1.0)
        # In units of the box, so that one step size fits coefficients and density.
        self._low, self._span = low, high - low
        self._cma = CmaEs(
            np.clip((mean - low) / self._span, 0.0, 1.0),
            sigma=settings.sigma,
            low=np.zeros_like(mean),
            high=np.ones_like(mean),
            population=settings.population,
            seed=spec.seed,
        )
        self._best: Vector = self._cma.mean
        self._best_losses = UNSCORABLE

    @property
    def num_steps(self) -> int:
        """Generations; the last one may be cut short by the number of evaluations."""
        return math.ceil(self._settings.evaluations / self._cma.population)

    def step(self, step: int) -> OptimizeStep:
        """Score one generation and adapt to it; the losses are those of the best so far."""
        candidates = self._cma.ask()
        left = self._settings.evaluations - step * self._cma.population
        scored = candidates[:left]
        losses = self._score([self._recipe_of(candidate) for candidate in scored])
        totals = np.array([found.total(self._weights) for found in losses])
        totals[~np.isfinite(totals)] = math.inf
        first = int(np.argmin(totals))
        if totals[first] < self._best_total():
            self._best, self._best_losses = candidates[first], losses[first]
        if not math.isfinite(self._best_total()):
            raise TrainingError(
                f"{self._spec.name}, step {step + 1}: some candidate must have a finite loss; got "
                f"none of {len(scored)}. Narrow [low, high] or check the experts."
            )
        if len(scored) == len(candidates):
            self._cma.tell(candidates, totals)
        return OptimizeStep(
            step + 1,
            self._best_total(),
            self._best_losses.safety,
            self._best_losses.expert,
            step_loss=float(totals[first]),
            sigma=self._cma.sigma,
        )

    def _best_total(self) -> float:
        total = self._best_losses.total(self._weights)
        return total if math.isfinite(total) else math.inf

    def _recipe_of(self, candidate: Vector) -> MergeRecipe:
        numbers = self._low + self._span * candidate
        density: float | None = None
        if self._settings.method != "task_arithmetic":
            density = self._settings.density
        if self._settings.search_density:
            density, numbers = float(numbers[-1]), numbers[:-1]
        values = torch.zeros(self._table.shape, dtype=torch.float64)
        values[self._table.active] = torch.from_numpy(numbers)
        return coefficient_recipe(self._spec, self._table, values, density=density)

    def recipe(self) -> MergeRecipe:
        """Return the best candidate scored so far."""
        return self._recipe_of(self._best)

    def state_dict(self) -> dict[str, Any]:
        """Return the distribution's state and the best candidate."""
        return {
            "cma": self._cma.state_dict(),
            "best": torch.from_numpy(self._best.copy()),
            "best_losses": list(self._best_losses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        self._cma.load_state_dict(state["cma"])
        self._best = state["best"].numpy().copy()
        self._best_losses = PairLosses(*state["best_losses"])
