"""A sampler of its own: recipes near those of the front so far."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial


class NeighbourSampler(BaseSampler):
    """Random recipes first, then steps from a feasible recipe of the front."""

    def __init__(
        self,
        *,
        width: float = 0.1,
        seed: int | None = None,
        n_startup_trials: int = 8,
        constraints_func: Callable[[FrozenTrial], Sequence[float]] | None = None,
    ) -> None:
        self._width = width
        self._rng = np.random.default_rng(seed)
        self._random = RandomSampler(seed=seed)
        self._startup = n_startup_trials
        self._constraints = constraints_func or (lambda trial: ())

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return none: each number is sampled on its own."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return none: each number is sampled on its own."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value near that of a feasible recipe of the front."""
        near = [
            found.params[param_name]
            for found in study.best_trials
            if param_name in found.params and max(self._constraints(found), default=0.0) <= 0.0
        ]
        known = (
            isinstance(param_distribution, FloatDistribution) and param_distribution.step is None
        )
        if not near or not known or trial.number < self._startup:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        low, high = param_distribution.low, param_distribution.high
        place = self._rng.choice(near) + self._width * (high - low) * self._rng.normal()
        return float(np.clip(place, low, high))
