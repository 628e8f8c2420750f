"""Supervised fine-tuning: cross-entropy on targets, the step that every stage shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safemerge.config.training import AlignSpec, FinetuneSpec
from safemerge.errors import TrainingError
from safemerge.training.batch import IGNORED, TokenBatch

WARMUP_STEPS = 5
"""Linear warm-up of the learning rate."""


@dataclass(frozen=True)
class StepMetrics:
    """What one optimiser step saw."""

    step: int
    """1-indexed."""
    loss: float
    """Mean cross-entropy over target tokens, nats."""
    grad_norm: float
    """Global norm before clipping."""
    num_tokens: int
    """Real tokens of this worker's batch."""


def target_loss(model: Any, batch: TokenBatch) -> Tensor:
    """Return the mean cross-entropy over target tokens.

    The output layer is applied to target positions only: with short answers it is the largest
    matrix of a small model, and most of its rows would be thrown away.

    Args:
        model: A causal LM of transformers, bare or with a peft adapter.
        batch: Padded rows.

    Returns:
        A scalar in nats, float32; 0 if the batch has no target.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = _hidden_states(causal.base_model, batch)
    targets = batch.labels[:, batch.num_shared + 1 :]
    chosen = targets != IGNORED
    logits = causal.get_output_embeddings()(hidden[:, :-1][chosen]).float()
    if not len(logits):
        return hidden.sum() * 0.0
    return torch.nn.functional.cross_entropy(logits, targets[chosen])


def _hidden_states(core: Any, batch: TokenBatch) -> Tensor:
    """Return last hidden states of the positions from `num_shared` on.

    Rows begin with the same tokens (the chat template's system message). Their keys and values
    are computed once and shared by all rows, gradients included: the same result for fewer
    tokens.
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
    """Return the learning rate of a step (0-indexed): warm-up, then linear to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return spec.learning_rate * warmup * (1.0 - step / spec.steps)


def make_optimizer(model: Any, spec: FinetuneSpec | AlignSpec) -> torch.optim.Optimizer:
    """Return AdamW over the trainable parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=spec.learning_rate, weight_decay=spec.weight_decay)


def train(
    model: Any,
    optimizer: torch.optim.Optimizer,
    stream: Iterable[TokenBatch],
    spec: FinetuneSpec | AlignSpec,
    *,
    first_step: int = 0,
    device: str = "cpu",
    reduce_gradients: Callable[[list[Tensor], int], None] | None = None,
    on_step: Callable[[StepMetrics], None] | None = None,
) -> None:
    """Run the optimiser steps of a supervised stage.

    Args:
        model: Model with trainable parameters; changed in place.
        optimizer: Over those parameters.
        stream: One batch per step; batches before `first_step` are skipped unused.
        spec: Steps, learning rate, clipping.
        first_step: Steps already done (resume).
        device: Where batches go.
        reduce_gradients: Averages gradients over ranks in place, weighted by each rank's target
            tokens; None for one rank.
        on_step: Called after every step.

    Raises:
        TrainingError: If the loss is not finite; the last checkpoint stays usable.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    for step, batch in enumerate(stream):
        if step < first_step:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec, step)
        loss = target_loss(model, batch.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{spec.name}, step {step + 1}: the loss must be finite; got {value}. Lower "
                "learning_rate; the last checkpoint before this step is kept."
            )
        torch.autograd.backward(loss)
        if reduce_gradients is not None:
            num_targets = int((batch.labels[:, 1:] != IGNORED).sum())
            reduce_gradients([p.grad for p in trainable if p.grad is not None], num_targets)
        norm = torch.nn.utils.clip_grad_norm_(trainable, spec.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_step is not None:
            on_step(StepMetrics(step + 1, value, float(norm), batch.num_tokens))
