"""How log-likelihoods are asked of vLLM: which requests, and what is read off their outputs.

vLLM scores a prompt's own tokens (``prompt_logprobs``) and does not let such a request read the
prefix cache, since cached positions have no scores. Only a continuation's positions are needed
here, so the cache may hold all that stands before them: what contexts begin with goes first,
alone, in whole blocks, each once; the continuations behind it find these blocks and compute
little more than themselves. That also bounds the scores' memory: rows of logits are made for
positions that are computed.

Nothing depends on it: an output whose continuation was cached too says so, and is asked again
with the cache left unread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from safemerge.engines.engine import Continuation

Tokens = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context and of its continuation."""


class Request(NamedTuple):
    """One prompt for vLLM."""

    token_ids: tuple[int, ...]
    pair: Tokens | None
    """What is read off its output; None if it only fills the cache."""


def distinct(continuations: Sequence[Continuation]) -> list[Tokens]:
    """Return each pair of token ids once, continuations of one context side by side."""
    by_context: dict[tuple[int, ...], dict[Tokens, None]] = {}
    for asked in continuations:
        pair = (asked.context_ids, asked.continuation_ids)
        by_context.setdefault(asked.context_ids, {})[pair] = None
    return [pair for pairs in by_context.values() for pair in pairs]


def requests(pairs: Sequence[Tokens], *, block: int | None) -> Iterator[Request]:
    """Yield a request a pair, in order, and before each one for whole blocks that are new.

    Args:
        pairs: See `distinct`.
        block: Tokens of a block of the KV cache; None if the cache is not to be read.

    Yields:
        Requests; of a context as many whole blocks as leave its last token, which predicts the
        continuation, to be computed. A shorter context has none, nor has one whose blocks an
        earlier request filled: vLLM computes a prompt's last block even where it is cached.
    """
    filled: set[tuple[int, ...]] = set()
    for pair in pairs:
        context, continuation = pair
        whole = 0 if block is None else (len(context) - 1) // block * block
        if block and whole and context[:whole] not in filled:
            yield Request(context[:whole], None)
            filled.update(context[:end] for end in range(block, whole + 1, block))
        yield Request(context + continuation, pair)


def read_scores(pair: Tokens, output: Any) -> tuple[float, bool] | None:
    """Return a continuation's log-probability, and whether it is greedy.

    Args:
        pair: What was asked.
        output: vLLM's output for context and continuation as one prompt, with flat scores.

    Returns:
        None if a position that predicts the continuation was not computed.
    """
    context, continuation = pair
    count, rows = len(continuation), output.prompt_logprobs
    # Aligned at the end: scores of a cached beginning are arbitrary, or left out.
    if output.num_cached_tokens >= len(context) or tuple(rows.token_ids[-count:]) != continuation:
        return None
    is_greedy = all(rank == 1 for rank in rows.ranks[-count:])
    return float(sum(rows.logprobs[-count:])), is_greedy
