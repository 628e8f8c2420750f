import pytest

from safemerge.engines.chat import ChatFormat
from safemerge.errors import DataError
from safemerge.optimize.pairs import load_pairs


@pytest.fixture
def pairs_of(tiny_base):
    return lambda spec: load_pairs(spec, ChatFormat(tiny_base))


def test_rows_weigh_alike_within_a_set(optimize, pairs_of):
    pairs = pairs_of(optimize())
    for item in pairs.sets:
        assert [row.share for row in item.rows] == pytest.approx([1 / 7] * 7)
    assert pairs.safety != pairs.expert


def test_sources_share_by_weight_whatever_their_size(optimize, pairs_of):
    (one,) = optimize().model_dump()["safety"]
    few = {**one, "source": {**one["source"], "stop": 2}, "weight": 3.0}
    rows = pairs_of(optimize(safety=[one, few])).safety.rows
    assert [row.share for row in rows] == pytest.approx([0.25 / 7] * 7 + [0.75 / 2] * 2)


def test_every_rank_takes_its_rows_of_the_same_batch(optimize, pairs_of):
    item = pairs_of(optimize()).safety
    settings = {"batch_size": 5, "steps": 4, "seed": "0/safety"}
    whole = list(item.batches(**settings))
    parts = [list(item.batches(**settings, rank=rank, world_size=2)) for rank in range(2)]
    for step, rows in enumerate(whole):
        assert rows[0::2] == parts[0][step]
        assert rows[1::2] == parts[1][step]
    assert whole != list(item.batches(**{**settings, "seed": "1/safety"}))


def test_chunks_hold_every_row_once(optimize, pairs_of):
    item = pairs_of(optimize()).expert
    for world_size in (1, 2, 3):
        shares, rows = [], 0
        for rank in range(world_size):
            for batch, part in item.chunks(rows_at_once=2, rank=rank, world_size=world_size):
                assert len(batch.input_ids) == len(part) <= 2
                rows += len(part)
                shares += part
        assert rows == 7
        assert sum(shares) == pytest.approx(1.0)


def test_entropy_sees_prompts_and_one_place_holder(optimize, pairs_of):
    with_answers = pairs_of(optimize())
    without = pairs_of(optimize(objective="entropy"))
    for full, cut in zip(with_answers.safety.rows, without.safety.rows, strict=True):
        prompt = full.sample.ids[: full.sample.num_prompt]
        assert cut.sample.ids == (*prompt, 0)
        assert cut.share == full.share


def test_a_prompt_that_fills_the_context_is_named_with_its_file(optimize, pairs_of):
    with pytest.raises(DataError, match=r"within max_tokens; got \d+ of 8 for .*safety\.jsonl"):
        pairs_of(optimize(max_tokens=8))
