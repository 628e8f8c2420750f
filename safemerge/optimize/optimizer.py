"""Data-aware optimisation of a merge: what its three optimisers share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from safemerge.config.recipe import Linear, MergeRecipe, TaskArithmetic
from safemerge.errors import MergeError, TrainingError
from safemerge.optimize.merged_model import MergedModel
from safemerge.optimize.objective import PairLosses, row_loss, whole_losses
from safemerge.optimize.pairs import Pairs
from safemerge.optimize.spec import OptimizeSpec
from safemerge.training.gradient import AllReduce

Score = Callable[[Sequence[MergeRecipe]], list[PairLosses]]
"""Losses of recipes on both sets; infinite for a recipe that cannot be merged or scored."""

UNSCORABLE = PairLosses(math.inf, math.inf)
"""Losses of a broken candidate: worse than any other, so that a search leaves its region."""


@dataclass(frozen=True)
class Team:
    """The workers of an optimisation, seen from one of them."""

    rank: int = 0
    world_size: int = 1
    all_reduce: AllReduce | None = None
    """Sums a tensor over all workers, in place; None for one."""


@dataclass(frozen=True)
class OptimizeStep:
    """What one step of an optimisation saw."""

    step: int
    """1-indexed."""
    loss: float
    """What is minimised, in nats: of the step's rows, or of the best candidate so far."""
    safety_loss: float | None = None
    """Cross-entropy (or entropy) on D_safety, of the same."""
    expert_loss: float | None = None
    grad_norm: float | None = None
    """Euclidean norm of the gradient in all coefficients."""
    step_loss: float | None = None
    """Least loss among a generation's candidates."""
    sigma: float | None = None
    """CMA-ES's step size."""
    coefficients: Mapping[str, float] | None = None
    """Mean coefficient by expert, over the groups that it changes."""

    def known(self) -> dict[str, int | float]:
        """Return the values that this step has, by name."""
        values = {
            name: value
            for name, value in self.__dict__.items()
            if value is not None and name != "coefficients"
        }
        means = self.coefficients or {}
        return values | {f"coefficient/{name}": value for name, value in means.items()}

    @property
    def summary(self) -> str:
        """The step in a few words, for a line of progress."""
        parts = [f"loss {self.loss:.3f}"]
        if self.safety_loss is not None:
            parts.append(f"safety {self.safety_loss:.3f}")
        if self.expert_loss is not None:
            parts.append(f"expert {self.expert_loss:.3f}")
        return ", ".join(parts)


@runtime_checkable
class CoefficientSearch(Protocol):
    """One optimiser: steps in lockstep on every worker, a state to resume from, a recipe."""

    @property
    def num_steps(self) -> int:
        """Steps from the start to the end."""
        ...

    def step(self, step: int) -> OptimizeStep:
        """Take a step (0-indexed); the same on every worker.

        Raises:
            TrainingError: If a loss or gradient is not finite.
        """
        ...

    def recipe(self) -> MergeRecipe:
        """Return the recipe found so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what later steps depend on: tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        ...


def model_score(spec: OptimizeSpec, merged: MergedModel, pairs: Pairs, team: Team) -> Score:
    """Return a score on a torch model: whole sets, the same rows for every recipe.

    Several recipes are shared out over the workers, each whole on one, so that their losses do
    not depend on the number of workers; the rows of a single recipe are shared out.

    Args:
        spec: Objective and rows at once.
        merged: The model.
        pairs: Both sets.
        team: The workers.
    """
    loss, device = row_loss(spec.objective), str(merged.device)

    def losses_of(recipe: MergeRecipe, *, together: bool) -> PairLosses:
        try:
            merged.load(recipe)
        except MergeError:
            return UNSCORABLE
        shared = team if together else Team()
        found = whole_losses(
            merged.model,
            pairs,
            loss=loss,
            rows_at_once=spec.rows_at_once,
            device=device,
            rank=shared.rank,
            world_size=shared.world_size,
            all_reduce=shared.all_reduce,
        )
        return found if all(map(math.isfinite, found)) else UNSCORABLE

    def score(recipes: Sequence[MergeRecipe]) -> list[PairLosses]:
        if len(recipes) == 1 or team.all_reduce is None:
            return [losses_of(recipe, together=True) for recipe in recipes]
        table = torch.zeros(len(recipes), 2, dtype=torch.float64, device=device)
        for index in range(team.rank, len(recipes), team.world_size):
            found = losses_of(recipes[index], together=False)
            table[index] = torch.tensor(found, dtype=torch.float64)
        team.all_reduce(table)
        return [PairLosses(*row) for row in table.tolist()]

    return score


def parent_recipes(spec: OptimizeSpec) -> dict[str, MergeRecipe]:
    """Return recipes that give the base and every expert themselves, by model name."""
    base = spec.base.name
    methods: dict[str, Linear | TaskArithmetic] = {
        base: Linear(name="linear", weights={base: 1.0})
    }
    for ref in spec.experts:
        methods[ref.name] = TaskArithmetic(name="task_arithmetic", weights={ref.name: 1.0})
    return {
        name: MergeRecipe(base=spec.base, experts=spec.experts, method=method, dtype=spec.dtype)
        for name, method in methods.items()
    }


def mean_recipe(spec: OptimizeSpec) -> MergeRecipe:
    """Return the plain mean of the task vectors, what a merge without data is."""
    share = 1.0 / len(spec.experts)
    weights = {ref.name: share for ref in spec.experts}
    method = TaskArithmetic(name="task_arithmetic", weights=dict(weights))
    return MergeRecipe(base=spec.base, experts=spec.experts, method=method, dtype=spec.dtype)


def check_step_is_finite(spec: OptimizeSpec, step: int, what: str, value: float) -> None:
    """Raise a TrainingError for a value of a step (0-indexed) that is not finite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{spec.name}, step {step + 1}: {what} must be finite; got {value}. Lower the "
            "learning rate or narrow [low, high]; the last checkpoint before is kept."
        )
