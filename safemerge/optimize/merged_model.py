"""A torch model whose weights are a merge, and the gradient of a loss in its coefficients.

For w = w0 + sum of c[i, g] tau_i over the tensors of group g, dL/dc[i, g] = <grad_w L, tau_i>
over that group, exactly. The inner products are taken as each parameter's gradient is done, and
the gradient is freed at once: the extra memory is one parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError
from safemerge.merge.inputs import runs
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.optimize.coefficient_table import CoefficientTable


class MergedModel:
    """One model, overwritten in place by each merge; base and experts stay on disk.

    Args:
        model: A causal LM of transformers, of the base's architecture. It is put into evaluation
            mode: no dropout.
        resident: The open checkpoints.
        table: Coefficients of the experts' task vectors.
        where: Place for messages.

    Raises:
        CheckpointMismatchError: If the model lacks a tensor of the base.
    """

    def __init__(
        self, model: Any, resident: ResidentCheckpoints, table: CoefficientTable, *, where: str
    ) -> None:
        self.model = model.eval()
        self._resident = resident
        self._table = table
        self._state: dict[str, Tensor] = model.state_dict()
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        missing = [name for name in table.names if name not in self._state]
        if missing:
            raise CheckpointMismatchError(
                f"{where}: the model must have every tensor of the base; got none for "
                f"'{missing[0]}' ({len(missing)} such tensors). transformers loads this "
                "architecture under other names; optimise it with cma_es on an evaluator."
            )
        changed = frozenset[str]().union(*table.changed.values())
        self._changed = tuple(name for name in table.names if name in changed)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in changed)
        self._rest_is_base = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(iter(self._parameters.values())).device
        return device

    def set_coefficients(self, values: Float64[Tensor, "experts groups"]) -> None:
        """Make base + sum of c[i, g] tau_i the weights.

        Computed in float32 (float64 for a model of that type) and rounded once to the model's.
        Tensors that no expert changes are the base's.

        Args:
            values: The coefficients, on the CPU.

        Raises:
            CheckpointChangedError: If a checkpoint's file is no longer what was opened.
        """
        names = self._changed if self._rest_is_base else self._table.names
        rows = values.tolist()
        with torch.no_grad():
            for name in names:
                target, column = self._state[name], self._table.column_by_name[name]
                base = self._read(self._resident.base_name, name, target)
                merged = base.clone()
                for expert, row in zip(self._table.experts, rows, strict=True):
                    if row[column] and name in self._table.changed[expert]:
                        vector = self._read(expert, name, target) - base
                        merged.add_(vector, alpha=row[column])
                target.copy_(merged)
        self._resident.check_unchanged()
        self._rest_is_base = True

    def load(self, recipe: MergeRecipe) -> None:
        """Make a recipe's merge the weights, whatever its method; see `merged_tensors`.

        Raises:
            MergeError: If it cannot be merged.
        """
        self._rest_is_base = False
        with torch.no_grad():
            for name, tensor in self._resident.merged(recipe, device=self.device):
                self._state[name].copy_(tensor)

    @contextmanager
    def collected_gradient(self) -> Iterator[Float64[Tensor, "experts groups"]]:
        """Collect dL/dc of every backward pass inside the block; parameters keep no gradient.

        Yields:
            The gradient, zero at first and added up in float64, on the model's device. Complete
            at the end of the block.
        """
        total = torch.zeros(self._table.shape, dtype=torch.float64, device=self.device)
        hooks = [
            self._parameters[name].register_post_accumulate_grad_hook(self._hook(name, total))
            for name in self._changed
            if name in self._parameters
        ]
        try:
            yield total
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str, total: Tensor) -> Any:
        column = self._table.column_by_name[name]

        def take(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None, "the hook follows the gradient's accumulation"
            base = self._resident.base.tensor(name)
            for row, expert in enumerate(self._table.experts):
                if name in self._table.changed[expert]:
                    other = self._resident.checkpoints[expert].tensor(name)
                    total[row, column] += _inner_product(gradient, other, base)

        return take

    def _read(self, model: str, name: str, like: Tensor) -> Tensor:
        tensor = self._resident.checkpoints[model].tensor(name)
        return tensor.to(like.device, _wide(like))


def _inner_product(gradient: Tensor, expert: Tensor, base: Tensor) -> Tensor:
    """Return <gradient, expert - base>, run by run, added up in float64 on the device."""
    flats = [tensor.flatten() for tensor in (gradient, expert, base)]
    total = torch.zeros((), dtype=torch.float64, device=gradient.device)
    for start, stop in runs(flats[0]):
        here, other, origin = (
            flat[start:stop].to(gradient.device, _wide(gradient)) for flat in flats
        )
        total += torch.dot(here, other - origin)
    return total


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
