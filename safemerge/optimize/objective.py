"""What is optimised of a merge: L_safety + alpha L_expert, or AdaMerging's entropy.

References:
    Hammoud et al., arXiv:2406.14563, section 3.2: L_r = E[-CE(f(q), a)] over D_r.
    Yang et al., AdaMerging, arXiv:2310.02575, equation 5: entropy of predictions on unlabeled
    samples. Departure: a language model has no class distribution; here it is the distribution
    over the whole vocabulary of the answer's first token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safemerge.optimize.pairs import Pairs
from safemerge.optimize.spec import ObjectiveName
from safemerge.training.batch import IGNORED, TokenBatch
from safemerge.training.gradient import AllReduce
from safemerge.training.sft import hidden_states
from safemerge.training.text_decoder import text_decoder

RowLoss = Callable[[Any, TokenBatch], Tensor]
"""Loss of each row of a batch."""


class PairLosses(NamedTuple):
    """Losses on both sets, lower is better: nats a target token, or entropy in nats."""

    safety: float
    expert: float

    def total(self, weights: tuple[float, float]) -> float:
        """Return the weighted sum that is minimised."""
        return weights[0] * self.safety + weights[1] * self.expert


def loss_weights(objective: ObjectiveName, alpha: float) -> tuple[float, float]:
    """Return the weights of the losses on D_safety and D_expert; see `OptimizeSpec`."""
    return (0.0, 1.0) if objective == "expert" else (1.0, alpha)


def row_loss(objective: ObjectiveName) -> RowLoss:
    """Return what is minimised for each row."""
    return row_entropies if objective == "entropy" else row_cross_entropies


def row_cross_entropies(model: Any, batch: TokenBatch) -> Tensor:
    """Return each row's mean cross-entropy over its target tokens.

    Args:
        model: A causal LM of transformers.
        batch: Padded rows, each with a target.

    Returns:
        Tensor of shape (rows,), nats a token.
    """
    logits, targets, rows = _target_logits(model, batch)
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return _row_means(losses, rows, len(batch.input_ids))


def row_entropies(model: Any, batch: TokenBatch) -> Tensor:
    """Return each row's mean entropy of the next token over its target places.

    Args:
        model: A causal LM of transformers.
        batch: Padded rows; labels only mark places, their values are not read.

    Returns:
        Tensor of shape (rows,), nats, in [0, log(vocabulary)].
    """
    logits, _, rows = _target_logits(model, batch)
    logarithms = torch.nn.functional.log_softmax(logits, dim=-1)
    entropies = -(logarithms.exp() * logarithms).sum(dim=-1)
    return _row_means(entropies, rows, len(batch.input_ids))


def _target_logits(model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    hidden = hidden_states(text_decoder(model), batch)
    targets = batch.labels[:, batch.num_shared + 1 :]
    chosen = targets != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][chosen]).float()
    return logits, targets[chosen], chosen.nonzero()[:, 0]


def _row_means(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    sums = values.new_zeros(num_rows).index_add(0, rows, values)
    counts = values.new_zeros(num_rows).index_add(0, rows, torch.ones_like(values))
    return sums / counts.clamp(min=1.0)


def whole_losses(
    model: Any,
    pairs: Pairs,
    *,
    loss: RowLoss,
    rows_at_once: int,
    device: str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    all_reduce: AllReduce | None = None,
) -> PairLosses:
    """Return the losses over every row of both sets, without gradients.

    Args:
        model: A causal LM of transformers.
        pairs: Both sets.
        loss: What is taken of each row.
        rows_at_once: Most rows in a forward pass.
        device: Where the model is.
        rank: This worker's place: it computes every world_size-th row.
        world_size: Workers that share the rows.
        all_reduce: Sums over them; None for one.

    Returns:
        Both losses, the same on every worker, added up in float64.
    """
    totals = []
    with torch.inference_mode():
        for item in pairs.sets:
            total = torch.zeros((), dtype=torch.float64, device=device)
            chunks = item.chunks(rows_at_once=rows_at_once, rank=rank, world_size=world_size)
            for batch, shares in chunks:
                rows = loss(model, batch.to(device)).double()
                total += rows @ torch.tensor(shares, dtype=torch.float64, device=device)
            totals.append(total)
    both = torch.stack(totals)
    if all_reduce is not None:
        all_reduce(both)
    safety, expert = both.tolist()
    return PairLosses(safety, expert)
