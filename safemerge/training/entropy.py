"""Cross-entropy over target positions, with the logits of a few of them at a time if asked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from safemerge.errors import ConfigError


def target_entropy(hidden: Tensor, labels: Tensor, head: Any, *, chunk: int | None) -> Tensor:
    """Return the mean cross-entropy of labels under an output layer.

    With `chunk` the gradient with respect to the hidden states is taken in the forward pass,
    while a chunk's logits are there: they are never kept and never computed twice.

    Args:
        hidden: (targets, width).
        labels: int64, (targets,).
        head: The output layer.
        chunk: Targets whose logits are held at once; None for all.

    Returns:
        A scalar in nats, float32; 0, with a gradient of zeros, if there is no target.

    Raises:
        ConfigError: If `chunk` is given and the output layer is no plain linear map.
    """
    if not len(labels):
        # The output layer takes part, for ranks that share its gradient wait for each other.
        nothing: Tensor = head(hidden.new_zeros((1, hidden.shape[-1]))).float().sum() * 0.0
        return nothing + hidden.sum().to(nothing.dtype) * 0.0
    if chunk is None:
        return cross_entropy(head(hidden).float(), labels)
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ConfigError(
            f"loss_chunk: the output layer must be a linear map without bias; got "
            f"{type(head).__name__}. Leave loss_chunk out."
        )
    total: Tensor = _ChunkedEntropy.apply(hidden, head.weight, labels, chunk)
    return total


class _ChunkedEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> Tensor:
        wanted, wanted_weight = ctx.needs_input_grad[:2]
        total: Tensor | None = None
        of_hidden: list[Tensor] = []
        wide = torch.promote_types(weight.dtype, torch.float32)
        of_weight = torch.zeros_like(weight, dtype=wide) if wanted_weight else None
        for part, label in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            logits = linear(part, weight).float()
            norm = logits.logsumexp(dim=-1, keepdim=True)
            loss = (norm - logits.gather(1, label[:, None])).sum()
            total = loss if total is None else total + loss
            if not (wanted or wanted_weight):
                continue
            share = logits.sub_(norm).exp_()
            share[torch.arange(len(label), device=label.device), label] -= 1.0
            share = share.div_(len(labels)).to(weight.dtype)
            if wanted:
                of_hidden.append((share @ weight).to(hidden.dtype))
            if of_weight is not None:
                of_weight += share.T @ part
        ctx.save_for_backward(
            torch.cat(of_hidden) if wanted else None,
            None if of_weight is None else of_weight.to(weight.dtype),
        )
        assert total is not None, "there are targets"
        return total / len(labels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        of_hidden, of_weight = ctx.saved_tensors
        return (
            None if of_hidden is None else of_hidden * grad.to(of_hidden.dtype),
            None if of_weight is None else of_weight * grad.to(of_weight.dtype),
            None,
            None,
        )
