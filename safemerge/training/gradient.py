"""Gradients of a logical batch: summed over its parts, averaged over ranks, exact in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from safemerge.errors import DataError
from safemerge.training.batch import IGNORED, TokenBatch

AllReduce = Callable[[Tensor], None]
"""Sums a tensor over all ranks, in place."""

Loss = Callable[[Any, TokenBatch], Tensor]
"""Mean loss of a model over a batch's target tokens."""


@dataclass(frozen=True)
class LogicalBatch:
    """This rank's rows of a step, in the parts they are computed in."""

    parts: tuple[TokenBatch, ...]
    shares: tuple[float, ...]
    """Each part's share of the target tokens; their means weighted so give the whole's mean."""
    num_targets: int
    """Target tokens that the shares are of."""
    num_tokens: int


def logical_batch(
    batch: TokenBatch, *, num_parts: int, device: str, joined: bool = False
) -> LogicalBatch:
    """Split a batch's rows into parts of about equal size, on a device.

    Args:
        batch: Padded rows, on the CPU.
        num_parts: Most parts to make; none is empty.
        device: Where the parts go.
        joined: Take shares of the target tokens of all ranks, for gradients that are summed
            over them; of this rank's otherwise.
    """
    parts = [batch]
    if num_parts > 1:
        rows = torch.arange(len(batch.input_ids))
        parts = [
            _rows(batch, rows[index::num_parts]) for index in range(min(num_parts, len(rows)))
        ]
    counts = [int((part.labels[:, 1:] != IGNORED).sum()) for part in parts]
    total = sum(counts)
    if joined:
        assert batch.joined_targets is not None, "the stage's batches are counted"
        total = batch.joined_targets
    return LogicalBatch(
        tuple(part.to(device) for part in parts),
        tuple(count / total if total else 1.0 for count in counts),
        total,
        batch.num_tokens,
    )


def _rows(batch: TokenBatch, rows: Tensor) -> TokenBatch:
    mask = batch.attention_mask[rows]
    longest = int(mask.sum(dim=1).max())
    return replace(
        batch,
        input_ids=batch.input_ids[rows, :longest],
        attention_mask=mask[:, :longest],
        labels=batch.labels[rows, :longest],
    )


def accumulate(model: Any, batch: LogicalBatch, *, loss: Loss, sign: float = 1.0) -> Tensor:
    """Add a logical batch's gradient to the parameters' ``grad``.

    Args:
        model: The model, at the weights where the gradient is taken.
        batch: The rows; the mean runs over the targets of all parts.
        loss: The loss of one part.
        sign: Factor of the gradient. -1 subtracts exactly what 1 adds.

    Returns:
        The mean loss (without the sign), a detached scalar on the device.
    """
    total: Tensor | None = None
    for part, share in zip(batch.parts, batch.shares, strict=True):
        value = loss(model, part) * (sign * share)
        torch.autograd.backward(value)
        total = value.detach() if total is None else total + value.detach()
    assert total is not None, "a logical batch has parts"
    return total * sign


class Averaged(NamedTuple):
    """Tensors of this rank that become means over all ranks."""

    tensors: Sequence[Tensor]
    """Changed in place."""
    losses: Sequence[Tensor]
    """Scalars."""
    num_targets: int
    """This rank's weight."""


def average(
    groups: Sequence[Averaged], *, all_reduce: AllReduce | None, where: str
) -> list[list[Tensor]]:
    """Average groups of tensors over the ranks, each weighted by its targets, in one all-reduce.

    Args:
        groups: What to average; tensors of one dtype and device.
        all_reduce: Sums over the ranks; None for a single one.
        where: Place for messages.

    Returns:
        Each group's averaged losses.

    Raises:
        DataError: If a group has no target token on any rank.
    """
    if all_reduce is None:
        totals = [float(group.num_targets) for group in groups]
        losses = [list(group.losses) for group in groups]
    else:
        totals, losses = _averaged(groups, all_reduce)
    for total in totals:
        check_targets(total, where=where)
    return losses


def check_targets(num_targets: float, *, where: str) -> None:
    """Refuse a batch without a target token.

    Raises:
        DataError: If there is none.
    """
    if not num_targets:
        raise DataError(
            f"{where}: some token of a batch must carry a loss; got only masked tokens. "
            "Raise batch_size or check the response templates."
        )


def _averaged(
    groups: Sequence[Averaged], all_reduce: AllReduce
) -> tuple[list[float], list[list[Tensor]]]:
    pieces: list[Tensor] = []
    for group in groups:
        like = group.tensors[0]
        pieces += [tensor.reshape(-1) * group.num_targets for tensor in group.tensors]
        pieces += [loss.reshape(1).to(like) * group.num_targets for loss in group.losses]
        pieces.append(like.new_tensor([float(group.num_targets)]))
    payload = torch.cat(pieces)
    all_reduce(payload)
    sizes = [len(piece) for piece in pieces]
    summed: Iterator[Tensor] = iter(torch.split(payload, sizes))
    totals, losses = [], []
    for group in groups:
        sums = [next(summed) for _ in group.tensors]
        values = [next(summed)[0] for _ in group.losses]
        total = next(summed)[0]
        for tensor, value in zip(group.tensors, sums, strict=True):
            tensor.copy_((value / total).view_as(tensor))
        totals.append(float(total))
        losses.append([value / total for value in values])
    return totals, losses


def global_norm(tensors: Sequence[Tensor], *, all_reduce: AllReduce | None = None) -> Tensor:
    """Return the Euclidean norm of all entries of all tensors together, on the device.

    Args:
        tensors: Whole tensors, or this rank's shards of them.
        all_reduce: Sums a scalar over the ranks that hold the other shards; None for whole
            tensors.
    """
    norm = torch.nn.utils.get_total_norm(list(tensors))
    if all_reduce is None:
        return norm
    square = norm.square()
    all_reduce(square)
    return square.sqrt()


def zero_gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Give every parameter a gradient of zeros, and return the gradients, or their shards."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return local_shards([p.grad for p in parameters if p.grad is not None])


def local_shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return what this rank holds of each tensor, sharing memory; whole tensors as they are."""
    with torch.no_grad():
        return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
