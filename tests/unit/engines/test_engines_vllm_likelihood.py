from dataclasses import dataclass, field

import pytest

from safemerge.engines.engine import Continuation
from safemerge.engines.vllm_likelihood import Request, distinct, read_scores, requests

LONG = tuple(range(9))
SHORT = (1, 2, 3, 4)


@dataclass
class FlatScores:
    """What vLLM's flat scores hold: a token, its log-probability and its rank by position."""

    token_ids: list[int]
    logprobs: list[float]
    ranks: list[int]


@dataclass
class Output:
    prompt_logprobs: FlatScores
    num_cached_tokens: int = 0
    outputs: list[object] = field(default_factory=list)


def scores(tokens, logprobs, ranks):
    return FlatScores(list(tokens), list(logprobs), list(ranks))


def test_each_pair_is_asked_once_with_those_of_its_context():
    asked = [
        Continuation("a", LONG, (20,)),
        Continuation("b", SHORT, (20,)),
        Continuation("c", LONG, (21, 22)),
        Continuation("d", LONG, (20,)),
    ]
    assert distinct(asked) == [(LONG, (20,)), (LONG, (21, 22)), (SHORT, (20,))]


def test_whole_blocks_of_each_context_go_first_and_leave_its_last_token():
    first, second, third = (LONG, (20,)), (LONG, (21, 22)), (SHORT, (20,))
    assert list(requests([first, second, third], block=4)) == [
        Request(LONG[:8], None),
        Request((*LONG, 20), first),
        Request((*LONG, 21, 22), second),
        Request((*SHORT, 20), third),
    ]
    # Eight of eight tokens in two blocks: the eighth is needed, so one block goes first.
    eight = (LONG[:8], (20,))
    assert next(requests([eight], block=4)) == Request(LONG[:4], None)


def test_blocks_that_contexts_share_are_filled_once():
    other = (*LONG[:8], 30, 31, 32, 33)
    further = (*LONG[:4], 40, 41)
    pairs = [(LONG, (20,)), (other, (20,)), (further, (20,))]
    assert [request.token_ids for request in requests(pairs, block=4) if not request.pair] == [
        LONG[:8]
    ]
    # A second block of its own is filled, whatever the first.
    fills = [
        item.token_ids
        for item in requests([*pairs, ((*further, 42, 43, 44), (20,))], block=4)
        if not item.pair
    ]
    assert fills == [LONG[:8], (*further, 42, 43)]


def test_without_the_cache_only_pairs_are_asked():
    pairs = [(LONG, (20,)), (LONG, (21,))]
    assert [request.pair for request in requests(pairs, block=None)] == pairs
    assert list(requests([], block=4)) == []


@pytest.mark.parametrize(
    "rows",
    [
        # All positions but the first, the cached ones with anything in them.
        scores((7, 7, 7, 20, 21), (9.0, 9.0, -1.0, -0.5, -0.25), (5, 5, 5, 1, 1)),
        # Cached positions left out.
        scores((20, 21), (-0.5, -0.25), (1, 1)),
    ],
)
def test_scores_are_summed_over_the_continuation_alone(rows):
    assert read_scores((SHORT, (20, 21)), Output(rows, num_cached_tokens=3)) == (-0.75, True)


def test_one_token_that_is_not_the_likeliest_makes_it_not_greedy():
    rows = scores((20, 21), (-0.5, -0.25), (1, 2))
    assert read_scores((SHORT, (20, 21)), Output(rows)) == (-0.75, False)


@pytest.mark.parametrize(
    ("rows", "num_cached"),
    [
        (scores((20, 21), (-0.5, -0.25), (1, 1)), 4),
        (scores((21,), (-0.25,), (1,)), 0),
        (scores((99, 21), (-0.5, -0.25), (1, 1)), 0),
    ],
    ids=["last-context-token-cached", "too-few-rows", "other-token"],
)
def test_what_was_not_computed_is_not_read(rows, num_cached):
    assert read_scores((SHORT, (20, 21)), Output(rows, num_cached_tokens=num_cached)) is None
