"""Coefficients by gradient: Adam on what one backward pass at the merged weights says.

References:
    Yang et al., AdaMerging, arXiv:2310.02575, section 3.2 and appendix: Adam on layer-wise
    coefficients cut to [0, 1]. Departure: the cut follows each step, so that a coefficient at an
    end can come back; theirs is in the forward pass, where its gradient is zero.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from safemerge.config.recipe import MergeRecipe
from safemerge.optimize.coefficient_table import (
    CoefficientTable,
    coefficient_recipe,
    first_values,
)
from safemerge.optimize.merged_model import MergedModel
from safemerge.optimize.objective import PairLosses, loss_weights, row_loss
from safemerge.optimize.optimizer import OptimizeStep, Team, check_step_is_finite
from safemerge.optimize.pairs import SETS, Pairs
from safemerge.optimize.spec import GradientDescent, OptimizeSpec
from safemerge.training.batch import EncodedSample, collate


class GradientSearch:
    """Projected Adam on task-arithmetic coefficients.

    Workers share a step's rows and add up experts times groups + 2 numbers; the coefficients and
    Adam's state are then the same on each.

    Args:
        spec: The declared optimisation, with the optimiser ``gradient``.
        table: Which coefficients there are.
        merged: The model.
        pairs: Both sets.
        team: The workers.
    """

    def __init__(
        self,
        spec: OptimizeSpec,
        table: CoefficientTable,
        merged: MergedModel,
        pairs: Pairs,
        team: Team,
    ) -> None:
        assert isinstance(spec.optimizer, GradientDescent), "made for this optimiser"
        self._spec, self._settings = spec, spec.optimizer
        self._table, self._merged, self._team = table, merged, team
        self._loss = row_loss(spec.objective)
        self._weights = loss_weights(spec.objective, spec.alpha)
        self.values: Float64[Tensor, "experts groups"] = first_values(spec, table)
        settings = self._settings
        self._adam = torch.optim.Adam(
            [self.values],
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
        )
        self._streams = [
            item.batches(
                batch_size=settings.batch_size,
                steps=settings.steps,
                seed=f"{spec.seed}/{name}",
                rank=team.rank,
                world_size=team.world_size,
            )
            for name, item in zip(SETS, pairs.sets, strict=True)
        ]
        self._next_step = 0

    @property
    def num_steps(self) -> int:
        """Steps from the start to the end."""
        return self._settings.steps

    def step(self, step: int) -> OptimizeStep:
        """Take one step of Adam; the losses are those of its rows before the step."""
        rows = self._rows(step)
        gradient, losses = self.gradient(rows)
        total = losses.total(self._weights)
        check_step_is_finite(self._spec, step, "the loss", total)
        norm = float(gradient.norm())
        check_step_is_finite(self._spec, step, "the gradient's norm", norm)
        self.values.grad = gradient
        self._adam.step()
        active = self._table.active
        cut = self.values.clamp(self._settings.low, self._settings.high)
        self.values.copy_(torch.where(active, cut, 0.0))
        safety = losses.safety if self._weights[0] else None
        counts = active.sum(dim=1).clamp(min=1)
        means = (self.values.sum(dim=1) / counts).tolist()
        return OptimizeStep(
            step + 1,
            total,
            safety,
            losses.expert,
            grad_norm=norm,
            coefficients=dict(zip(self._table.experts, means, strict=True)),
        )

    def _rows(self, step: int) -> list[list[EncodedSample]]:
        skipped = step - self._next_step
        self._next_step = step + 1
        return [next(islice(stream, skipped, None)) for stream in self._streams]

    def gradient(
        self, rows: list[list[EncodedSample]]
    ) -> tuple[Float64[Tensor, "experts groups"], PairLosses]:
        """Return the objective's gradient at the present coefficients, over all workers' rows.

        Args:
            rows: This worker's rows of D_safety and of D_expert.

        Returns:
            The gradient on the CPU, and the losses; both the same on every worker.
        """
        self._merged.set_coefficients(self.values)
        device, size = self._merged.device, self._settings.batch_size
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        num_parts = self._settings.micro_batches
        with self._merged.collected_gradient() as collected:
            for part in range(num_parts):
                total: Tensor | None = None
                for index, weight in enumerate(self._weights):
                    if not weight:
                        continue
                    batch = collate(rows[index][part::num_parts]).to(str(device))
                    loss = self._loss(self._merged.model, batch).sum() / size
                    sums[index] += loss.detach()
                    total = weight * loss if total is None else total + weight * loss
                assert total is not None, "some set has a weight"
                torch.autograd.backward(total)
        payload = torch.cat([collected.flatten(), sums])
        if self._team.all_reduce is not None:
            self._team.all_reduce(payload)
        found = payload.cpu()
        return found[:-2].view(self._table.shape), PairLosses(*found[-2:].tolist())

    def recipe(self) -> MergeRecipe:
        """Return the task arithmetic of the present coefficients."""
        return coefficient_recipe(self._spec, self._table, self.values)

    def state_dict(self) -> dict[str, Any]:
        """Return coefficients and Adam's state."""
        return {"values": self.values.clone(), "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from what `state_dict` returned."""
        self.values.copy_(state["values"])
        self._adam.load_state_dict(state["adam"])
