"""Supervised fine-tuning: cross-entropy on targets, the step that every stage shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from safemerge.config.alignment import AlignSpec
from safemerge.config.training import FinetuneSpec
from safemerge.errors import TrainingError
from safemerge.training.batch import IGNORED, TokenBatch
from safemerge.training.entropy import target_entropy
from safemerge.training.gradient import (
    AllReduce,
    Loss,
    accumulate,
    check_targets,
    logical_batch,
)
from safemerge.training.packing import packed_hidden
from safemerge.training.text_decoder import text_decoder

WARMUP_STEPS = 5
"""Linear warm-up of the learning rate."""


@dataclass(frozen=True)
class StepMetrics:
    """What one optimiser step saw."""

    step: int
    """1-indexed."""
    loss: float
    """Mean cross-entropy over target tokens, nats; under the perturbation with Vaccine."""
    grad_norm: float
    """Global norm before clipping."""
    num_tokens: int
    """Real tokens of this worker's batch."""
    harmful_loss: float | None = None
    """h(w): mean cross-entropy on the harmful batch, nats."""
    perturbed_loss: float | None = None
    """h(w'): the same after the simulated harmful step."""
    harmful_grad_norm: float | None = None
    """Global norm of the harmful gradient at w."""
    difference_ratio: float | None = None
    """|g - g'| / |g| of the harmful gradients at w and w'."""
    regularizer_strength: float | None = None
    """Lambda of this step."""
    penalty: float | None = None
    """Booster's penalty lambda (h(w) - h(w')), nats."""
    noise_distance: float | None = None
    """RepNoise's distance of harmful representations from noise."""
    proximal: float | None = None
    """Lisa's proximal term."""
    harmful_test_loss: float | None = None
    """Mean cross-entropy on held-out harmful rows before the step, nats."""
    refusal: float | None = None
    """Share of held-out requests that were refused before the step."""

    def known(self) -> dict[str, int | float]:
        """Return the values that this step has, by name."""
        return {name: value for name, value in self.__dict__.items() if value is not None}


class StepLosses(NamedTuple):
    """What a method saw while it filled the parameters' gradients."""

    loss: float
    """The alignment or fine-tuning loss, nats."""
    num_tokens: int
    """Real tokens of this worker's rows."""
    measured: Mapping[str, float] = MappingProxyType({})
    """Further fields of `StepMetrics`; all must be finite."""


StepMethod = Callable[[int, Any], StepLosses]
"""Takes a step (0-indexed) and a batch, fills the gradients of the trainable parameters."""


def target_loss(
    model: Any, batch: TokenBatch, *, packing: bool = False, chunk: int | None = None
) -> Tensor:
    """Return the mean cross-entropy over target tokens.

    The output layer is applied to target positions only: with short answers it is the largest
    matrix of a small model, and most of its rows would be thrown away.

    Args:
        model: A causal LM of transformers, bare or with a peft adapter.
        batch: Padded rows.
        packing: Lay the rows end to end, see `safemerge.training.packing`.
        chunk: Targets whose logits are held at once; None for all.

    Returns:
        A scalar in nats, float32; 0 if the batch has no target.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    if packing:
        rows = batch.packed
        hidden = packed_hidden(text_decoder(causal), rows)[rows.targets]
        return target_entropy(hidden, rows.labels, head, chunk=chunk)
    hidden = hidden_states(text_decoder(causal), batch)
    targets = batch.labels[:, batch.num_shared + 1 :]
    chosen = targets != IGNORED
    return target_entropy(hidden[:, :-1][chosen], targets[chosen], head, chunk=chunk)


def stage_loss(spec: FinetuneSpec | AlignSpec) -> Loss:
    """Return the loss of a stage: the same mean, computed as its file says."""
    return partial(target_loss, packing=spec.packing, chunk=spec.loss_chunk)


def hidden_states(core: Any, batch: TokenBatch) -> Tensor:
    """Return last hidden states of the positions from `num_shared` on.

    Rows begin with the same tokens (the chat template's system message). Their keys and values
    are computed once and shared by all rows, gradients included: the same result for fewer
    tokens.

    Args:
        core: A decoder of transformers, without its output head.
        batch: Padded rows.

    Returns:
        Tensor of shape (rows, tokens - num_shared, width).
    """
    ids, mask, shared = batch.input_ids, batch.attention_mask, batch.num_shared
    if not shared:
        whole: Tensor = core(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return whole
    cache = core(input_ids=ids[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids))
    rest: Tensor = core(
        input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache, use_cache=True
    ).last_hidden_state
    return rest


def learning_rate(spec: FinetuneSpec | AlignSpec, step: int) -> float:
    """Return the learning rate of a step (0-indexed): warm-up, then the declared schedule."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    if spec.schedule == "constant":
        return spec.learning_rate * warmup
    return spec.learning_rate * warmup * (1.0 - step / spec.steps)


def make_optimizer(model: Any, spec: FinetuneSpec | AlignSpec) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters."""
    return torch.optim.AdamW(
        trainable_parameters(model), lr=spec.learning_rate, weight_decay=spec.weight_decay
    )


def trainable_parameters(model: Any) -> list[Tensor]:
    """Return the parameters that training changes, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def supervised(
    model: Any,
    spec: FinetuneSpec | AlignSpec,
    *,
    device: str = "cpu",
    reduce_gradients: Callable[[list[Tensor], int], None] | None = None,
    loss: Loss | None = None,
    sum_losses: AllReduce | None = None,
) -> StepMethod:
    """Return the plain method: the gradient of the mean cross-entropy over target tokens.

    Args:
        model: Model with trainable parameters.
        spec: Micro-batches.
        device: Where batches go.
        reduce_gradients: Averages gradients over ranks in place, weighted by each rank's target
            tokens; None for one rank.
        loss: The loss of one part; the declared one if left out.
        sum_losses: Given where the model's own backward pass sums gradients over ranks: sums a
            tensor in the same way.
    """
    trainable = trainable_parameters(model)
    loss = loss or stage_loss(spec)

    def method(step: int, batch: TokenBatch) -> StepLosses:
        joined = sum_losses is not None
        parts = spec.micro_batches
        whole = logical_batch(batch, num_parts=parts, device=device, joined=joined)
        value = accumulate(model, whole, loss=loss)
        if sum_losses is not None:
            check_targets(whole.num_targets, where=f"{spec.name}, step {step + 1}")
            sum_losses(value)
        if reduce_gradients is not None:
            gradients = [p.grad for p in trainable if p.grad is not None]
            reduce_gradients(gradients, whole.num_targets)
        return StepLosses(float(value), batch.num_tokens)

    return method


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    stream: Iterable[Any],
    spec: FinetuneSpec | AlignSpec,
    *,
    first_step: int = 0,
    device: str = "cpu",
    reduce_gradients: Callable[[list[Tensor], int], None] | None = None,
    method: StepMethod | None = None,
    measure: Callable[[int], Mapping[str, float]] | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
    stop: Callable[[int], bool] | None = None,
) -> int:
    """Run the optimiser steps of a stage.

    Args:
        model: Model with trainable parameters; changed in place.
        optimizer: Over those parameters.
        stream: One batch per step, as the method takes it; batches before `first_step` are
            skipped unused.
        spec: Steps, learning rate, clipping.
        first_step: Steps already done (resume).
        device: Where batches go.
        reduce_gradients: Of the plain method, see `supervised`.
        method: Fills the gradients; the plain method if left out.
        measure: Called with every step (0-indexed) before it; returns fields of `StepMetrics`.
        on_step: Called after every step.
        stop: Called with every step (0-indexed) before it and before `measure`; the stage ends
            where it is true.

    Returns:
        Steps done, those before `first_step` among them.

    Raises:
        TrainingError: If a loss or the gradient is not finite. The weights are those of the step
            before, so the last checkpoint stays usable.
    """
    if method is None:
        method = supervised(model, spec, device=device, reduce_gradients=reduce_gradients)
    trainable = trainable_parameters(model)
    model.train()
    done = first_step
    for step, batch in enumerate(stream):
        if step < first_step:
            continue
        if stop is not None and stop(step):
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, step)
        extra = measure(step) if measure is not None else {}
        losses = method(step, batch)
        _check_finite(spec.name, step, "the loss", losses.loss)
        for name, value in losses.measured.items():
            _check_finite(spec.name, step, name.replace("_", " "), value)
        norm = _clip(trainable, spec.max_grad_norm)
        _check_finite(spec.name, step, "the gradient's norm", norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            measured = {**losses.measured, **extra}
            on_step(StepMetrics(step + 1, losses.loss, norm, losses.num_tokens, **measured))
        done = step + 1
    return done


def _clip(trainable: list[Tensor], longest: float) -> float:
    """Clip the gradients by their global norm, and return the norm before."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in trainable if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    torch.nn.utils.clip_grads_with_norm_(trainable, longest, norm)
    return float(norm)


def _check_finite(name: str, step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise TrainingError(
            f"{name}, step {step + 1}: {what} must be finite; got {value}. Lower "
            "learning_rate; the last checkpoint before this step is kept."
        )
