"""Vaccine's gradient: alignment under the worst small shift of the attention outputs.

References:
    Huang et al., "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
    Fine-tuning", arXiv:2402.01109, equations 4 to 6: e = rho g / |g| with g the gradient with
    respect to every attention module's output; the update is the gradient of the loss with e
    added to those outputs. The length is taken over the whole batch, as in the authors' code,
    or over each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from safemerge.errors import ConfigError
from safemerge.training.batch import TokenBatch
from safemerge.training.gradient import AllReduce, LogicalBatch, Loss, accumulate

EPSILON = 1e-7
"""Added to the norm that the gradient is divided by."""

_NAMES = ("self_attn", "attn", "attention")


def attention_modules(model: Any, *, where: str) -> list[torch.nn.Module]:
    """Return a model's attention modules, first layer first.

    Raises:
        ConfigError: If the model has none under a known name.
    """
    for wanted in _NAMES:
        found = [m for name, m in model.named_modules() if name.rsplit(".", 1)[-1] == wanted]
        if found:
            return found
    raise ConfigError(
        f"{where}: vaccine needs attention modules named {', '.join(_NAMES)}; got a model with "
        "none. Take another method."
    )


def accumulate_vaccine(
    model: Any,
    batch: LogicalBatch,
    *,
    rho: float,
    per_row: bool = False,
    loss: Loss,
    all_reduce: AllReduce | None = None,
    where: str = "vaccine",
) -> Tensor:
    """Add the gradient of the perturbed loss to the parameters' ``grad``.

    Two forward and backward passes. Rows do not share the leading tokens' states here, since
    each row shifts its own.

    Args:
        model: The model.
        batch: This rank's rows; the mean runs over the targets of all ranks.
        rho: Length of the perturbation.
        per_row: Take the length over each row, instead of over the whole batch and all ranks.
        loss: Mean loss of one part.
        all_reduce: Sums over ranks; None for a single one.
        where: Place for messages.

    Returns:
        The mean loss under the perturbation, a detached scalar on the device.
    """
    modules = attention_modules(model, where=where)
    parts = tuple(replace(part, num_shared=0) for part in batch.parts)
    gradients = [
        _output_gradients(model, modules, part, loss, share)
        for part, share in zip(parts, batch.shares, strict=True)
    ]
    if per_row:
        scales = [_row_scales(part, rho) for part in gradients]
    else:
        scale = _batch_scale(gradients, rho, batch.num_targets, all_reduce)
        scales = [scale] * len(gradients)
    shifts = iter(
        [gradient * scale for gradient in part]
        for part, scale in zip(gradients, scales, strict=True)
    )

    def perturbed(model: Any, part: TokenBatch) -> Tensor:
        with _shifted(modules, next(shifts)):
            return loss(model, part)

    return accumulate(model, replace(batch, parts=parts), loss=perturbed)


def _output_gradients(
    model: Any, modules: Sequence[torch.nn.Module], part: TokenBatch, loss: Loss, share: float
) -> list[Tensor]:
    outputs: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        # Below the first trainable layer nothing asks for a gradient by itself.
        output = output if output.requires_grad else output.requires_grad_()
        outputs.append(output)
        return output

    with _hooked(modules, [keep] * len(modules)):
        value = loss(model, part) * share
    return list(torch.autograd.grad(value, outputs))


def _row_scales(part: Sequence[Tensor], rho: float) -> Tensor:
    squares = torch.stack([g.double().square().sum(dim=(1, 2)) for g in part]).sum(dim=0)
    return (rho / (squares.sqrt() + EPSILON)).to(part[0])[:, None, None]


def _batch_scale(
    gradients: Sequence[Sequence[Tensor]],
    rho: float,
    num_targets: int,
    all_reduce: AllReduce | None,
) -> Tensor:
    like = gradients[0][0]
    flat = [gradient.double() for part in gradients for gradient in part]
    square = torch.stack([gradient.square().sum() for gradient in flat]).sum()
    if all_reduce is None:
        return (rho / (square.sqrt() + EPSILON)).to(like)
    # Each rank's gradient counts by its share of the targets of all ranks.
    sums = torch.stack([square * num_targets**2, square.new_tensor(float(num_targets))])
    all_reduce(sums)
    norm = sums[0].sqrt() / sums[1]
    return (rho * (num_targets / sums[1]) / (norm + EPSILON)).to(like)


@contextmanager
def _shifted(modules: Sequence[torch.nn.Module], shifts: Sequence[Tensor]) -> Iterator[None]:
    with _hooked(modules, [shift.add for shift in shifts]):
        yield


@contextmanager
def _hooked(
    modules: Sequence[torch.nn.Module], changes: Sequence[Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Pass each module's output through a function."""

    def hook(change: Callable[[Tensor], Tensor]) -> Any:
        def changed(_module: Any, _inputs: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        return changed

    handles = [
        module.register_forward_hook(hook(change))
        for module, change in zip(modules, changes, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
