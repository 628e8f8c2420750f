"""CMA-ES: minimise a function of a box by sampling, ranking and adapting a normal distribution.

References:
    Hansen, The CMA Evolution Strategy: A Tutorial, arXiv:1604.00772, figure 6 and table 1, with
    positive recombination weights only. Departure: candidates live in a box; one outside is drawn
    again, and after `MAX_DRAWS` draws cut to the box.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MAX_DRAWS = 100
"""Draws of one candidate before it is cut to the box."""

Vector = NDArray[np.float64]


def default_population(num_coefficients: int) -> int:
    """Return 4 + floor(3 ln n), the tutorial's and EvoMM's population."""
    return 4 + math.floor(3 * math.log(num_coefficients))


class CmaEs:
    """The search's distribution; `ask` gives a generation, `tell` adapts to its losses.

    Every generation is a function of (seed, generation, state), so a search that is resumed from
    `state_dict` resumes bit for bit.

    Args:
        mean: First mean, inside the box.
        sigma: First standard deviation in every direction.
        low: Lower end of the box, included.
        high: Upper end of the box, included.
        population: Candidates a generation, at least 3; `default_population` if None.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        mean: Vector,
        *,
        sigma: float,
        low: Vector,
        high: Vector,
        population: int | None = None,
        seed: int = 0,
    ) -> None:
        count = len(mean)
        self.population = population or default_population(count)
        self._low, self._high, self._seed = low, high, seed
        parents = self.population // 2
        raw = math.log((self.population + 1) / 2) - np.log(np.arange(1, parents + 1))
        self._weights: Vector = raw / raw.sum()
        mass = 1.0 / float((self._weights**2).sum())
        self._mass = mass
        self._path_rate = (4 + mass / count) / (count + 4 + 2 * mass / count)
        self._sigma_rate = (mass + 2) / (count + mass + 5)
        self._rank_one = 2 / ((count + 1.3) ** 2 + mass)
        self._rank_many = min(
            1 - self._rank_one, 2 * (mass - 2 + 1 / mass) / ((count + 2) ** 2 + mass)
        )
        excess = max(0.0, math.sqrt((mass - 1) / (count + 1)) - 1)
        self._damping = 1 + 2 * excess + self._sigma_rate
        self._norm = math.sqrt(count) * (1 - 1 / (4 * count) + 1 / (21 * count**2))
        self.mean: Vector = mean.astype(np.float64)
        self.sigma = sigma
        self.generation = 0
        self._covariance: Vector = np.eye(count)
        self._path: Vector = np.zeros(count)
        self._sigma_path: Vector = np.zeros(count)

    def ask(self) -> Vector:
        """Return the generation's candidates, of shape (population, coefficients)."""
        generator = np.random.default_rng([self._seed, self.generation])
        scales, axes = self._decomposed()
        candidates = np.empty((self.population, len(self.mean)))
        for index in range(self.population):
            candidate = self.mean
            for _ in range(MAX_DRAWS):
                step = axes @ (scales * generator.standard_normal(len(self.mean)))
                candidate = self.mean + self.sigma * step
                if bool(((candidate >= self._low) & (candidate <= self._high)).all()):
                    break
            candidates[index] = np.clip(candidate, self._low, self._high)
        return candidates

    def tell(self, candidates: Vector, losses: Vector) -> None:
        """Adapt to a whole generation.

        Args:
            candidates: What `ask` returned.
            losses: Loss of each, lower is better; infinity for one that cannot be scored. Ties
                keep the candidates' order.
        """
        count = len(self.mean)
        order = np.argsort(losses, kind="stable")[: len(self._weights)]
        steps = (candidates[order] - self.mean) / self.sigma
        move = self._weights @ steps
        scales, axes = self._decomposed()
        whitened = axes @ ((axes.T @ move) / scales)

        rate = self._sigma_rate
        self._sigma_path = (1 - rate) * self._sigma_path + (
            math.sqrt(rate * (2 - rate) * self._mass) * whitened
        )
        length = float(np.linalg.norm(self._sigma_path))
        settled = 1 - (1 - rate) ** (2 * (self.generation + 1))
        slow = length / math.sqrt(settled) < (1.4 + 2 / (count + 1)) * self._norm

        rate = self._path_rate
        self._path = (1 - rate) * self._path
        if slow:
            self._path = self._path + math.sqrt(rate * (2 - rate) * self._mass) * move
        stalled = 0.0 if slow else rate * (2 - rate)
        kept = 1 - self._rank_one - self._rank_many + self._rank_one * stalled
        self._covariance = (
            kept * self._covariance
            + self._rank_one * np.outer(self._path, self._path)
            + self._rank_many * (steps.T * self._weights) @ steps
        )
        self.mean = self.mean + self.sigma * move
        self.sigma *= math.exp(
            min(1.0, self._sigma_rate / self._damping * (length / self._norm - 1))
        )
        self.generation += 1

    def _decomposed(self) -> tuple[Vector, Vector]:
        """Square roots of the covariance's eigenvalues, and its eigenvectors."""
        symmetric = (self._covariance + self._covariance.T) / 2
        values, axes = np.linalg.eigh(symmetric)
        return np.sqrt(np.maximum(values, 1e-20)), axes

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes, as tensors and numbers."""
        return {
            "mean": torch.from_numpy(self.mean.copy()),
            "sigma": self.sigma,
            "generation": self.generation,
            "covariance": torch.from_numpy(self._covariance.copy()),
            "path": torch.from_numpy(self._path.copy()),
            "sigma_path": torch.from_numpy(self._sigma_path.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        self.mean = state["mean"].numpy().copy()
        self.sigma = float(state["sigma"])
        self.generation = int(state["generation"])
        self._covariance = state["covariance"].numpy().copy()
        self._path = state["path"].numpy().copy()
        self._sigma_path = state["sigma_path"].numpy().copy()
