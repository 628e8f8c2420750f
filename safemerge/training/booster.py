"""Booster's step, computed three ways that give the same update.

References:
    Huang et al., "Booster: Tackling Harmful Fine-tuning for Large Language Models via Attenuating
    Harmful Perturbation", ICLR 2025: min over w of f(w) + lambda (h(w) - h(w')) with the harmful
    step w' = w - alpha grad h(w) / |grad h(w)|. The update is its first-order form

        G = grad f(w) + lambda (grad h(w) - grad h(w')).

    Departures from the group's public code: accumulated parts of a batch count all of them, the
    weights are restored bit for bit, and adapters and their gradients stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safemerge.training.adapter_slot import joint_losses, slot_copies
from safemerge.training.gradient import (
    AllReduce,
    Averaged,
    LogicalBatch,
    Loss,
    accumulate,
    average,
    check_targets,
    global_norm,
    local_shards,
    zero_gradients,
)

EPSILON = 1e-7
"""Added to the norm that the harmful gradient is divided by."""


@dataclass(frozen=True)
class BoosterInputs:
    """What one Booster step is computed from."""

    model: Any
    """At the weights w; every backend leaves them as they were, bit for bit."""
    parameters: Sequence[Tensor]
    """Trainable tensors of one dtype, whole or sharded; the norm is over all of them together."""
    alignment: LogicalBatch
    harmful: LogicalBatch
    """Used at w and again at w'."""
    regularizer_strength: float
    """Lambda, at least 0."""
    perturbation_step: float
    """Alpha, at least 0."""
    loss: Loss
    """The loss h, and f where nothing else is said."""
    accumulate_alignment: Callable[[LogicalBatch], Tensor] | None = None
    """Adds grad f to the parameters' gradients and returns f; None for f's plain mean loss."""
    all_reduce: AllReduce | None = None
    """Sums over ranks; None for a single one."""
    sharded: bool = False
    """Whether each rank holds a shard of every parameter (FSDP2). Backward passes then sum the
    gradients over the ranks themselves, and the batches' shares are of all ranks' targets."""
    packing: bool = False
    """Of the joint pass of ``grouped``, as `loss` has it."""
    chunk: int | None = None
    """Of the joint pass of ``grouped``, as `loss` has it."""
    where: str = "booster"
    """Place for messages."""

    def add_alignment_gradient(self) -> Tensor:
        """Add grad f to the parameters' gradients and return f."""
        if self.accumulate_alignment is not None:
            return self.accumulate_alignment(self.alignment)
        return accumulate(self.model, self.alignment, loss=self.loss)


class BoosterOutcome(NamedTuple):
    """What a Booster step saw; the update G is in the parameters' ``grad``. Device scalars."""

    alignment_loss: Tensor
    """f(w)."""
    harmful_loss: Tensor
    """h(w)."""
    perturbed_loss: Tensor
    """h(w')."""
    harmful_norm: Tensor
    """|grad h(w)|."""
    difference_norm: Tensor
    """|grad h(w) - grad h(w')|."""


Backend = Callable[[BoosterInputs], BoosterOutcome]


def three_pass(inputs: BoosterInputs) -> BoosterOutcome:
    """Compute the update by its definition: three gradients, each kept, then combined.

    The reference: three all-reduces, and copies of the weights and of two gradients.
    """
    weights = local_shards(inputs.parameters)
    kept = [weight.detach().clone() for weight in weights]
    harmful_loss, gradient = _reduced(inputs, inputs.harmful)
    norm = _norm(inputs, gradient)
    _perturb(weights, gradient, norm, inputs.perturbation_step)
    perturbed_loss, perturbed = _reduced(inputs, inputs.harmful)
    _copy_into(weights, kept)
    alignment_loss, total = _reduced(inputs, None)
    difference = [a - b for a, b in zip(gradient, perturbed, strict=True)]
    for entry, change in zip(total, difference, strict=True):
        entry.add_(change, alpha=inputs.regularizer_strength)
    apart = global_norm(difference)
    return _outcome(inputs, [alignment_loss, harmful_loss, perturbed_loss], norm, apart)


def in_place(inputs: BoosterInputs) -> BoosterOutcome:
    """Compute the update in the parameters' own gradients, with one copy of the weights.

    The second harmful pass subtracts from the first one's gradient as it accumulates, and the
    alignment pass adds to what is left. Several ranks need two all-reduces: one before the
    perturbation, one for the other two gradients together. With sharded weights each pass sums
    its own gradient, and one scalar, the norm's square, is summed before the perturbation.
    """
    weights = local_shards(inputs.parameters)
    gradients = zero_gradients(inputs.parameters)
    loss = accumulate(inputs.model, inputs.harmful, loss=inputs.loss)
    ((harmful_loss,),) = _average(inputs, [Averaged(gradients, [loss], _h(inputs))])
    norm = _norm(inputs, gradients)
    backup = [weight.detach().clone() for weight in weights]
    _perturb(weights, gradients, norm, inputs.perturbation_step)
    perturbed_loss = accumulate(inputs.model, inputs.harmful, loss=inputs.loss, sign=-1.0)
    _copy_into(weights, backup)
    if inputs.all_reduce is None or inputs.sharded:
        apart = global_norm(gradients)
        torch._foreach_mul_(gradients, inputs.regularizer_strength)
        alignment_loss = inputs.add_alignment_gradient()
        return _outcome(inputs, [alignment_loss, harmful_loss, perturbed_loss], norm, apart)
    difference = backup  # the weights are back: their copy's memory is free
    _copy_into(difference, gradients)
    torch._foreach_zero_(gradients)
    alignment_loss = inputs.add_alignment_gradient()
    (perturbed_loss,), (alignment_loss,) = _average(
        inputs,
        [
            Averaged(difference, [perturbed_loss], _h(inputs)),
            Averaged(gradients, [alignment_loss], inputs.alignment.num_targets),
        ],
    )
    torch._foreach_add_(gradients, difference, alpha=inputs.regularizer_strength)
    return BoosterOutcome(
        alignment_loss, harmful_loss, perturbed_loss, norm, global_norm(difference)
    )


def grouped(inputs: BoosterInputs) -> BoosterOutcome:
    """Compute the update in two passes: h at w, then f at w and h at w' together.

    Rows of the second pass go through two slots of the adapter: w for the alignment rows, w' for
    the harmful ones. The weights are never changed; the base's products run once over all rows.
    Several ranks need two all-reduces.

    Raises:
        ConfigError: If a trainable tensor is no LoRA factor of a linear layer.
    """
    parameters = inputs.parameters
    harmful_loss, gradient = _reduced(inputs, inputs.harmful)
    norm = global_norm(gradient)
    slot = slot_copies(parameters)
    _perturb(slot, gradient, norm, inputs.perturbation_step)
    gradients, perturbed = zero_gradients(parameters), zero_gradients(slot)
    sums = torch.zeros(2, dtype=norm.dtype, device=norm.device)
    pairs = zip(inputs.alignment.parts, inputs.harmful.parts, strict=True)
    shares = zip(inputs.alignment.shares, inputs.harmful.shares, strict=True)
    for (first, second), share in zip(pairs, shares, strict=True):
        losses = joint_losses(
            inputs.model,
            first,
            second,
            parameters=parameters,
            slot=slot,
            where=inputs.where,
            packing=inputs.packing,
            chunk=inputs.chunk,
        )
        scaled = torch.stack([a * b for a, b in zip(losses, share, strict=True)])
        torch.autograd.backward(scaled.sum())
        sums += scaled.detach()
    (perturbed_loss,), (alignment_loss,) = _average(
        inputs,
        [
            Averaged(perturbed, [sums[1]], _h(inputs)),
            Averaged(gradients, [sums[0]], inputs.alignment.num_targets),
        ],
    )
    difference = [a - b for a, b in zip(gradient, perturbed, strict=True)]
    torch._foreach_add_(gradients, difference, alpha=inputs.regularizer_strength)
    return BoosterOutcome(
        alignment_loss, harmful_loss, perturbed_loss, norm, global_norm(difference)
    )


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {"three_pass": three_pass, "in_place": in_place, "grouped": grouped}
)
"""The ways to compute the update, by the name in a training file."""


def _h(inputs: BoosterInputs) -> int:
    return inputs.harmful.num_targets


def _average(inputs: BoosterInputs, groups: Sequence[Averaged]) -> list[list[Tensor]]:
    if inputs.sharded:
        # The gradients are sums over the ranks already; the losses are summed at the end.
        for group in groups:
            check_targets(group.num_targets, where=inputs.where)
        return [list(group.losses) for group in groups]
    return average(groups, all_reduce=inputs.all_reduce, where=inputs.where)


def _norm(inputs: BoosterInputs, gradient: Sequence[Tensor]) -> Tensor:
    return global_norm(gradient, all_reduce=inputs.all_reduce if inputs.sharded else None)


def _outcome(
    inputs: BoosterInputs, losses: Sequence[Tensor], norm: Tensor, apart: Tensor
) -> BoosterOutcome:
    """What the step saw; of sharded weights this rank's losses and norm become everybody's."""
    if inputs.sharded and inputs.all_reduce is not None:
        sums = torch.stack([*(loss.to(norm) for loss in losses), apart.square()])
        inputs.all_reduce(sums)
        *losses, square = sums
        apart = square.sqrt()
    return BoosterOutcome(*losses, norm, apart)


def _reduced(inputs: BoosterInputs, batch: LogicalBatch | None) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient over all ranks, of h on a batch, or of f; left in ``grad`` as well."""
    gradients = zero_gradients(inputs.parameters)
    if batch is None:
        loss, weight = inputs.add_alignment_gradient(), inputs.alignment.num_targets
    else:
        loss, weight = accumulate(inputs.model, batch, loss=inputs.loss), batch.num_targets
    ((loss,),) = _average(inputs, [Averaged(gradients, [loss], weight)])
    return loss, gradients


def _perturb(
    parameters: Sequence[Tensor], gradient: Sequence[Tensor], norm: Tensor, length: float
) -> None:
    """Go a step of a length against the gradient, in place; the norm stays on the device."""
    with torch.no_grad():
        step = torch._foreach_mul(list(gradient), length / (norm + EPSILON))
        torch._foreach_sub_(list(parameters), step)


def _copy_into(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(tensors), list(values))
