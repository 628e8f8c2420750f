"""A step of another package's alignment method: what its function is given, and gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from safemerge.training.gradient import (
    AllReduce,
    Averaged,
    LogicalBatch,
    Loss,
    accumulate,
    average,
    global_norm,
    zero_gradients,
)

EPSILON = 1e-7
"""Added to the norm that a shift's gradient is divided by."""


@dataclass(frozen=True)
class Gradient:
    """A loss and its gradient with respect to the trainable parameters, over all workers."""

    loss: Tensor
    """Scalar: mean cross-entropy over the target tokens, nats."""
    values: tuple[Tensor, ...]
    """Float32, one of each parameter's shape, in the order of `AlignmentStep.parameters`."""

    @property
    def norm(self) -> Tensor:
        """Euclidean norm of all entries together, a scalar."""
        return global_norm(self.values)

    def plus(self, other: Gradient, *, scale: float = 1.0) -> Gradient:
        """Return this gradient plus `scale` times another; the loss stays this one's."""
        values = torch._foreach_add(list(self.values), list(other.values), alpha=scale)
        return replace(self, values=tuple(values))


@dataclass
class AlignmentStep:
    """What an alignment method is given at each step: the model, its rows, and their gradients."""

    step: int
    """0-indexed."""
    num_steps: int
    model: Any
    """A causal language model of transformers, with an adapter of peft unless every weight is
    trained."""
    parameters: Sequence[Tensor]
    """The trainable parameters, float32; unchanged when the function returns."""
    alignment: LogicalBatch
    """This worker's rows of the alignment data: refusals and benign answers."""
    harmful: LogicalBatch | None
    """This worker's harmful rows; None for a method without harmful data."""
    seed: int
    """The stage's; with `step` it makes random draws that a resumed stage repeats."""
    where: str
    """Place for messages: the stage and the step."""
    loss: Loss
    """Mean cross-entropy over the target tokens of a part of a batch, as the stage declares it."""
    all_reduce: AllReduce | None = None
    """Sums over the workers; None for a single one."""
    harmful_loss: float | None = field(default=None, init=False)
    """Harmful loss at the first gradient that was taken of it, nats; it goes into the log."""

    def gradient(self, batch: LogicalBatch) -> Gradient:
        """Return the mean loss of a batch and its gradient, at the weights as they are.

        Args:
            batch: `alignment` or `harmful`.

        Raises:
            DataError: If the batch has no target token on any worker.
        """
        gradients = zero_gradients(self.parameters)
        loss = accumulate(self.model, batch, loss=self.loss)
        ((loss,),) = average(
            [Averaged(gradients, [loss], batch.num_targets)],
            all_reduce=self.all_reduce,
            where=self.where,
        )
        if batch is self.harmful and self.harmful_loss is None:
            self.harmful_loss = float(loss)
        return Gradient(loss, tuple(gradients))

    @contextmanager
    def shifted(self, gradient: Gradient, *, length: float) -> Iterator[None]:
        """Shift the weights along a gradient for the time of a ``with`` block.

        Args:
            gradient: The direction.
            length: Length of the shift in weight space; below 0 it goes against the gradient.

        Yields:
            Nothing; afterwards the weights are restored bit for bit.
        """
        kept = [parameter.detach().clone() for parameter in self.parameters]
        scale = length / (gradient.norm + EPSILON)
        try:
            with torch.no_grad():
                shift = torch._foreach_mul(list(gradient.values), scale)
                torch._foreach_add_(list(self.parameters), shift)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(list(self.parameters), kept)
