"""Two sets of adapter weights in one pass: rows of two batches, each through its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from safemerge.errors import ConfigError
from safemerge.training.batch import IGNORED, TokenBatch
from safemerge.training.entropy import target_entropy
from safemerge.training.packing import joined, packed_hidden
from safemerge.training.text_decoder import text_decoder


def slot_copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return copies of the trainable tensors that collect gradients of their own."""
    return [parameter.detach().clone().requires_grad_() for parameter in parameters]


def joint_losses(
    model: Any,
    first: TokenBatch,
    second: TokenBatch,
    *,
    parameters: Sequence[Tensor],
    slot: Sequence[Tensor],
    where: str,
    packing: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean losses of two batches, the second at the slot's weights, in one pass.

    Args:
        model: A causal LM with a peft adapter.
        first: Rows that go through the adapter's own weights.
        second: Rows that go through the slot's.
        parameters: The adapter's trainable tensors.
        slot: What stands in their place for the second batch, in the same order.
        where: Place for messages.
        packing: Lay the rows end to end, see `safemerge.training.packing`.
        chunk: Targets whose logits are held at once; None for all.

    Returns:
        Two scalars; the gradient of one reaches `parameters` only, of the other `slot` only.

    Raises:
        ConfigError: If a trainable tensor is no LoRA factor of a linear layer.
    """
    causal = model.get_base_model()
    replaced = dict(zip(map(id, parameters), slot, strict=True))
    route = _Route()
    with _routed(model, replaced, route, where):
        if packing:
            parts = _packed_parts(text_decoder(causal), first, second, route)
        else:
            parts = _padded_parts(text_decoder(causal), first, second, route)
    head = causal.get_output_embeddings()
    one, other = (target_entropy(*part, head, chunk=chunk) for part in parts)
    return one, other


_Part = tuple[Tensor, Tensor]
"""Hidden states (targets, width) and labels (targets,)."""


def _packed_parts(
    core: Any, first: TokenBatch, second: TokenBatch, route: _Route
) -> tuple[_Part, _Part]:
    rows = joined(first.packed, second.packed)
    route.dim, route.first = 1, len(first.packed.input_ids)
    hidden = packed_hidden(core, rows)[rows.targets]
    cut = [len(first.packed.targets), len(second.packed.targets)]
    one, other = zip(torch.split(hidden, cut), torch.split(rows.labels, cut), strict=True)
    return one, other


def _padded_parts(
    core: Any, first: TokenBatch, second: TokenBatch, route: _Route
) -> tuple[_Part, _Part]:
    rows = (len(first.input_ids), len(second.input_ids))
    ids, mask, labels = (
        _joined(getattr(first, name), getattr(second, name), fill)
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", IGNORED))
    )
    shared = min(first.num_shared, second.num_shared)
    route.first = rows[0]
    if shared:
        route.first = 1
        cache = core(input_ids=ids[[0, rows[0]], :shared], use_cache=True).past_key_values
        chosen_rows = torch.arange(2, device=ids.device).repeat_interleave(
            torch.tensor(rows, device=ids.device)
        )
        cache.batch_select_indices(chosen_rows)
        route.first = rows[0]
        hidden = core(
            input_ids=ids[:, shared:], attention_mask=mask, past_key_values=cache, use_cache=True
        ).last_hidden_state
    else:
        hidden = core(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    targets = labels[:, shared + 1 :]
    hidden = hidden[:, :-1]
    one, other = (
        (hidden[part][targets[part] != IGNORED], targets[part][targets[part] != IGNORED])
        for part in (slice(0, rows[0]), slice(rows[0], None))
    )
    return one, other


class _Route:
    """Which leading entries of the current pass go through the adapter's own weights."""

    def __init__(self) -> None:
        self.first = 0
        self.dim = 0
        """Rows (0), or tokens of a single row (1)."""


@contextmanager
def _routed(model: Any, replaced: dict[int, Tensor], route: _Route, where: str) -> Iterator[None]:
    from peft.tuners.lora import Linear

    modules = [module for module in model.modules() if isinstance(module, Linear)]
    reached = {id(p) for module in modules for p in _factors(module)}
    if missing := len(replaced.keys() - reached):
        raise ConfigError(
            f"{where}: booster.backend grouped needs LoRA on linear layers alone; got {missing} "
            "other trainable tensors. Take in_place."
        )
    for module in modules:
        module.forward = _forward(module, replaced, route)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _factors(module: Any) -> tuple[Tensor, Tensor]:
    (name,) = module.active_adapters
    return module.lora_A[name].weight, module.lora_B[name].weight


def _forward(module: Any, replaced: dict[int, Tensor], route: _Route) -> Any:
    down, up = _factors(module)
    second = (replaced[id(down)], replaced[id(up)])
    (name,) = module.active_adapters
    scaling = module.scaling[name]

    def forward(rows: Tensor) -> Tensor:
        result: Tensor = module.base_layer(rows)
        rows = rows.to(down.dtype)
        cut = [route.first, rows.shape[route.dim] - route.first]
        moved = [
            linear(linear(part, a), b)
            for part, (a, b) in zip(
                torch.split(rows, cut, route.dim), ((down, up), second), strict=True
            )
        ]
        total: Tensor = result + torch.cat(moved, route.dim) * scaling
        return total.to(result.dtype)

    return forward


def _joined(first: Tensor, second: Tensor, fill: int) -> Tensor:
    longest = max(first.shape[1], second.shape[1])
    return torch.cat([pad(t, (0, longest - t.shape[1]), value=fill) for t in (first, second)])
