"""Rows laid end to end, so that no product is spent on padding or on a beginning twice.

All layers see one row of real tokens. Only attention goes back to a grid of one row a sample,
causal and padded on the right, where padding is behind everything that is used and so is never
attended to. A beginning that all rows of a batch share stands once in the row of tokens and in
every row of the grid. The result is that of the padded batch, up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from safemerge.errors import ConfigError

_IMPLEMENTATION = "safemerge_packed"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class PackedRows:
    """One batch, or several, as a single row of tokens."""

    input_ids: Tensor
    """int64, (tokens,)."""
    positions: Tensor
    """int64, (tokens,): place of each token in its sample."""
    grid: Tensor
    """int64, (rows, longest): which token stands there; any where none does."""
    places: Tensor
    """int64, (tokens,): where each token stands in the flattened grid."""
    beginnings: tuple[tuple[int, int, slice], ...]
    """(first token, length, rows of the grid) of every shared beginning."""
    targets: Tensor
    """int64, (targets,): tokens that are followed by a target."""
    labels: Tensor
    """int64, (targets,): the targets."""


def pack(
    input_ids: Tensor, lengths: Sequence[int], labels: Tensor, *, num_shared: int, ignored: int
) -> PackedRows:
    """Lay a padded batch's rows end to end.

    Args:
        input_ids: int64, (rows, tokens), padded on the right.
        lengths: Real tokens of each row.
        labels: int64, (rows, tokens): the token itself where it is a target.
        num_shared: Leading tokens that all rows share and that carry no loss.
        ignored: Label of positions without a loss.

    Returns:
        The packed batch, on the device of `input_ids`.
    """
    device = input_ids.device
    rows, longest = len(lengths), max(lengths)
    steps = torch.arange(longest)
    taken = steps[None] < torch.tensor(lengths)[:, None]
    if num_shared:
        taken[1:, :num_shared] = False
    row_of, positions = taken.nonzero(as_tuple=True)
    grid = torch.zeros((rows, longest), dtype=torch.long)
    grid[row_of, positions] = torch.arange(len(row_of))
    grid[1:, :num_shared] = steps[:num_shared]
    where = (row_of.to(device), positions.to(device))
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=ignored)[where]
    targets = (following != ignored).nonzero().flatten()
    return PackedRows(
        input_ids=input_ids[where],
        positions=where[1],
        grid=grid.to(device),
        places=where[0] * longest + where[1],
        beginnings=((0, num_shared, slice(0, rows)),) if num_shared else (),
        targets=targets,
        labels=following[targets],
    )


def joined(first: PackedRows, second: PackedRows) -> PackedRows:
    """Lay a second packed batch behind a first; the beginnings of both stay apart."""
    tokens, rows = len(first.input_ids), len(first.grid)
    longest = max(first.grid.shape[1], second.grid.shape[1])
    grids, places = [], []
    for part, before_tokens, before_rows in ((first, 0, 0), (second, tokens, rows)):
        width = part.grid.shape[1]
        wider = (0, longest - width)
        grids.append(torch.nn.functional.pad(part.grid + before_tokens, wider))
        row_of = part.places // width + before_rows
        places.append(row_of * longest + part.places % width)
    moved = tuple(
        (start + tokens, length, slice(taken.start + rows, taken.stop + rows))
        for start, length, taken in second.beginnings
    )
    return PackedRows(
        input_ids=torch.cat([first.input_ids, second.input_ids]),
        positions=torch.cat([first.positions, second.positions]),
        grid=torch.cat(grids),
        places=torch.cat(places),
        beginnings=(*first.beginnings, *moved),
        targets=torch.cat([first.targets, second.targets + tokens]),
        labels=torch.cat([first.labels, second.labels]),
    )


def packed_hidden(core: Any, rows: PackedRows) -> Tensor:
    """Return the last hidden states of packed rows.

    Args:
        core: The decoder below a causal LM's output layer.
        rows: What it reads.

    Returns:
        (tokens, width).

    Raises:
        ConfigError: If the model's attention is more than causal (sliding windows shorter than
            a row, softcapping, sinks).
    """
    with _packed_attention(core):
        hidden: Tensor = core(
            input_ids=rows.input_ids[None],
            position_ids=rows.positions[None],
            use_cache=False,
            packed_rows=rows,
        ).last_hidden_state
    return hidden[0]


@contextmanager
def _packed_attention(core: Any) -> Iterator[None]:
    from transformers import AttentionInterface

    AttentionInterface.register(_IMPLEMENTATION, _attention)
    before = core.config._attn_implementation
    # Not `set_attn_implementation`, which walks all modules: attention reads the shared config.
    core.config._attn_implementation = _IMPLEMENTATION
    try:
        yield
    finally:
        core.config._attn_implementation = before


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_rows: PackedRows,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each row; tensors are (1, heads, tokens, width), as transformers has them."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    longest = packed_rows.grid.shape[1]
    more = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if sliding_window is not None and sliding_window < longest:
        more.append(f"a sliding window of {sliding_window} tokens")
    if more:
        raise ConfigError(
            f"packing: the model's attention must be causal and nothing more; got {more[0]} with "
            f"rows of {longest} tokens. Set packing: false."
        )
    grid = [
        _ToGrid.apply(tensor[0].transpose(0, 1), packed_rows).transpose(1, 2)
        for tensor in (query, key, value)
    ]
    found, _ = sdpa_attention_forward(module, *grid, None, dropout=dropout, scaling=scaling)
    return _FromGrid.apply(found, packed_rows)[None], None


class _ToGrid(torch.autograd.Function):
    """(tokens, heads, width) to (rows, longest, heads, width); gathers both ways."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: PackedRows) -> Tensor:
        ctx.rows = rows
        return tokens.index_select(0, rows.grid.flatten()).unflatten(0, rows.grid.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows = ctx.rows
        found = grad.flatten(0, 1).index_select(0, rows.places)
        for start, length, taken in rows.beginnings:
            found[start : start + length] = grad[taken, :length].sum(dim=0)
        return found, None


class _FromGrid(torch.autograd.Function):
    """(rows, longest, heads, width) to (tokens, heads, width); padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, rows: PackedRows) -> Tensor:
        ctx.rows = rows
        return grid.flatten(0, 1).index_select(0, rows.places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        shape = ctx.rows.grid.shape
        found = grad.new_zeros((shape.numel(), *grad.shape[1:]))
        found.index_copy_(0, ctx.rows.places, grad)
        return found.unflatten(0, shape), None
