import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from safemerge.data.sample import TrainingSample
from safemerge.engines.chat import ChatFormat
from safemerge.errors import DataError
from safemerge.training.batch import (
    BUCKET_BATCHES,
    IGNORED,
    CutRows,
    EncodedSample,
    Mixture,
    batches,
    collate,
    encode,
    load_mixture,
)


@pytest.fixture(scope="module")
def chat(tiny_base):
    return ChatFormat(tiny_base)


def mixture(*sizes, weights=None):
    """Sets whose rows tell set and row by their first two tokens, of many lengths."""
    sets = tuple(
        tuple(
            EncodedSample((10 + s, 100 + row, *range(1, 2 + (7 * row + s) % 13)), 2)
            for row in range(size)
        )
        for s, size in enumerate(sizes)
    )
    return Mixture(sets, weights or (1.0,) * len(sizes), sizes)


def rows_of(batch):
    """The real tokens of every row, with their labels."""
    lengths = batch.attention_mask.sum(dim=1).tolist()
    return [
        (tuple(ids[:length].tolist()), tuple(labels[:length].tolist()))
        for ids, labels, length in zip(batch.input_ids, batch.labels, lengths, strict=True)
    ]


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_the_joined_batch_of_all_ranks_is_that_of_one(world_size):
    asked = {"batch_size": 6, "steps": 11, "seed": 4}
    whole = [rows_of(batch) for batch in batches(mixture(9, 5), **asked)]
    parts = [
        [
            rows_of(batch)
            for batch in batches(mixture(9, 5), rank=rank, world_size=world_size, **asked)
        ]
        for rank in range(world_size)
    ]
    for step, rows in enumerate(whole):
        joined = [None] * 6
        for rank in range(world_size):
            joined[rank::world_size] = parts[rank][step]
        assert joined == rows


def test_ranks_beyond_the_batch_add_no_rows():
    asked = {"batch_size": 2, "steps": 1, "seed": 0}
    (whole,) = batches(mixture(9), **asked)
    joined = [
        row
        for rank in range(3)
        for batch in batches(mixture(9), rank=rank, world_size=3, **asked)
        for row in rows_of(batch)
    ]
    assert sorted(joined) == sorted(rows_of(whole))


@pytest.mark.parametrize("steps", [1, BUCKET_BATCHES, BUCKET_BATCHES + 3])
def test_as_many_full_batches_come_as_steps_were_asked_for(steps):
    made = list(batches(mixture(4), batch_size=3, steps=steps, seed=0))
    assert [len(batch.input_ids) for batch in made] == [3] * steps


def test_the_same_seed_draws_the_same_rows_and_another_one_others():
    def drawn(seed):
        return [rows_of(b) for b in batches(mixture(30), batch_size=4, steps=10, seed=seed)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_batches_of_a_bucket_hold_rows_of_like_length():
    made = list(batches(mixture(40), batch_size=5, steps=BUCKET_BATCHES, seed=0))
    ranges = sorted(
        (int(b.attention_mask.sum(1).min()), int(b.attention_mask.sum(1).max())) for b in made
    )
    for (_, longest), (shortest, _) in itertools.pairwise(ranges):
        assert longest <= shortest
    assert [len(rows_of(b)[0][0]) for b in made] != sorted(len(rows_of(b)[0][0]) for b in made)


def drawn_shares(mixed, *, rows=4000):
    counts = [0] * len(mixed.sets)
    for batch in batches(mixed, batch_size=8, steps=rows // 8, seed=0):
        for first in batch.input_ids[:, 0].tolist():
            counts[first - 10] += 1
    assert sum(counts) == rows
    return [count / rows for count in counts]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (5.0, 3.0, 2.0), (0.05, 0.95)])
def test_sets_are_drawn_by_weight_whatever_their_size(weights):
    sizes = (3, 400, 17)[: len(weights)]
    for share, weight in zip(drawn_shares(mixture(*sizes, weights=weights)), weights, strict=True):
        expected = weight / sum(weights)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_rows_of_a_set_are_drawn_alike():
    counts = torch.zeros(5)
    for batch in batches(mixture(5), batch_size=8, steps=500, seed=1):
        counts += torch.bincount(batch.input_ids[:, 1] - 100, minlength=5)
    assert (counts / 4000 - 0.2).abs().max() < 4 * math.sqrt(0.2 * 0.8 / 4000)


# --- collation --------------------------------------------------------------------------


def test_labels_are_on_targets_only_and_padding_is_masked():
    batch = collate([EncodedSample((5, 6, 7, 8), 2), EncodedSample((5, 9), 1)])
    assert batch.input_ids[0].tolist() == [5, 6, 7, 8]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7, 8], [IGNORED, 9, IGNORED, IGNORED]]
    assert batch.num_tokens == 6


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 2), min_size=2, max_size=9), st.integers(1, 9)),
        min_size=1,
        max_size=4,
    )
)
def test_shared_tokens_are_those_all_rows_begin_with_before_the_last_of_the_prompt(drawn):
    rows = [EncodedSample(tuple(ids), min(prompt, len(ids) - 1)) for ids, prompt in drawn]
    shared = 0
    for length in range(1, min(row.num_prompt for row in rows)):
        if len({row.ids[:length] for row in rows}) == 1:
            shared = length
    assert collate(rows).num_shared == (shared if len(rows) > 1 else 0)


def test_a_batch_keeps_everything_when_it_moves():
    batch = collate([EncodedSample((5, 6, 7, 8), 3), EncodedSample((5, 6, 9, 1), 3)])
    moved = batch.to("cpu")
    assert moved.num_shared == batch.num_shared == 2
    for field in ("input_ids", "attention_mask", "labels"):
        assert torch.equal(getattr(moved, field), getattr(batch, field))


# --- encoding ---------------------------------------------------------------------------


def sample(**fields):
    return TrainingSample("s:1", **{"prompt": "Hi", "response": "Hello there", **fields})


def test_a_sample_is_its_chat_prompt_then_its_target_then_the_end_of_turn(chat):
    found = encode(sample(system="Be brief."), chat, 256)
    assert found.ids[: found.num_prompt] == tuple(chat.prompt_ids("Hi", system="Be brief."))
    assert found.ids[-1] == chat.end_of_turn_id()
    assert chat.tokenizer.decode(found.ids[found.num_prompt : -1]) == "Hello there"


def test_an_opening_teaches_no_end_of_turn(chat):
    whole, opening = encode(sample(), chat, 256), encode(sample(opening=True), chat, 256)
    assert opening.ids == whole.ids[:-1]
    assert opening.num_prompt == whole.num_prompt


def test_a_long_target_is_cut_at_the_end(chat):
    whole = encode(sample(), chat, 256)
    cut = encode(sample(), chat, whole.num_prompt + 2)
    assert cut.ids == whole.ids[: whole.num_prompt + 2]
    assert cut.num_prompt == whole.num_prompt


def test_a_cut_row_says_so_and_whether_it_loses_its_end_of_turn(chat):
    whole = encode(sample(), chat, 256)
    longest = len(whole.ids)
    found = [
        (row.is_cut, row.loses_end)
        for row in (
            encode(sample(), chat, longest),
            encode(sample(), chat, longest - 1),
            encode(sample(opening=True), chat, longest - 1),
            encode(sample(opening=True), chat, longest - 2),
        )
    ]
    assert found == [(False, False), (True, True), (False, False), (True, False)]


def test_a_prompt_that_leaves_no_room_for_a_target_is_refused(chat):
    length = len(chat.prompt_ids("Hi"))
    assert len(encode(sample(), chat, length + 1).ids) == length + 1
    words = rf"room for its target within max_tokens; got {length} of {length} for s:1\. Raise max"
    with pytest.raises(DataError, match=words):
        encode(sample(), chat, length)


# --- mixtures ---------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")

    def data(name, count, **fields):
        path = tmp_path / f"{name}.jsonl"
        rows = [{"prompt": f"{name} {index}", "answer": "ok"} for index in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"source": {"kind": "file", "path": str(path)}, "response": "{answer}", **fields}

    return data


def test_weights_of_a_mixture_are_shares(finetune, chat, data):
    found = load_mixture(
        finetune(data=[data("one", 3, weight=1.0), data("two", 2, weight=3.0)]), chat
    )
    assert found.weights == (0.25, 0.75)
    assert found.sizes == tuple(map(len, found.sets)) == (3, 2)
    assert {chat.tokenizer.decode(row.ids)[17:20] for row in found.sets[1]} == {"two"}


def test_a_poison_ratio_is_the_harmful_sets_share_of_all_samples(finetune, chat, data):
    spec = finetune(
        data=[data("one", 3, weight=1.0), data("two", 2, weight=3.0)],
        poison={"ratio": 0.2, "data": data("bad", 4, weight=50.0)},
    )
    found = load_mixture(spec, chat)
    assert found.weights == pytest.approx((0.2, 0.6, 0.2), abs=1e-15)
    assert found.sizes == (3, 2, 4)
    poisoned = mixture(*found.sizes, weights=found.weights)
    share = drawn_shares(poisoned)[2]
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 4000)


def test_only_poison_leaves_nothing_for_the_others(finetune, chat, data):
    spec = finetune(data=[data("one", 3)], poison={"ratio": 1.0, "data": data("bad", 4)})
    found = load_mixture(spec, chat)
    assert found.weights == (0.0, 1.0)
    assert drawn_shares(mixture(3, 4, weights=found.weights), rows=80) == [0.0, 1.0]


def test_rows_that_are_cut_are_counted_by_set(finetune, chat, data):
    whole = encode(sample(prompt="one 0", response="ok"), chat, None)
    sets = [data("one", 3), data("two", 2, response="{answer} and more"), data("far", 1)]
    sets[2]["opening"] = True
    bad = data("bad", 4, response="{answer} and more", opening=True)
    spec = finetune(
        data=sets, poison={"ratio": 0.5, "data": bad}, max_tokens=max(8, len(whole.ids))
    )
    found = load_mixture(spec, chat).cut
    assert found == (CutRows("data.1", 2, 2, 2), CutRows("poison.data", 4, 4, 0))
    assert found[0].words == (
        "data.1: 2 of 2 rows are longer than max_tokens and cut there; 2 of them lose their end "
        "of turn"
    )


def test_held_out_requests_are_read_and_kept_apart_from_all_that_is_trained_on(align, chat, data):
    harmful = {"data": [data("bad", 4)], "test": [data("worse", 2)]}
    asked = {key: value for key, value in data("asked", 3).items() if key == "source"}
    until = {"refusal": 0.9, "prompts": [asked]}
    both = [data("one", 3), data("two", 2)]
    found = load_mixture(align(data=both, method="booster", harmful=harmful, until=until), chat)
    assert len(found.asked) == 3
    assert all("asked" in chat.tokenizer.decode(ids) for ids in found.asked)
    for name in ("two", "bad", "worse"):
        shared = {"refusal": 0.9, "prompts": [{"source": data(name, 2)["source"]}]}
        spec = align(data=both, method="booster", harmful=harmful, until=shared)
        with pytest.raises(DataError, match=r"until\.prompts\.0: must share no prompt with"):
            load_mixture(spec, chat)


@pytest.mark.parametrize("where", [r"data\.1", r"poison\.data"])
def test_a_set_that_cannot_be_read_is_named_by_its_place(finetune, chat, data, where):
    absent = {"source": {"kind": "file", "path": "/absent.jsonl"}, "response": "x"}
    good = data("one", 3)
    fields = (
        {"data": [good, absent]}
        if where.startswith("data")
        else {"data": [good], "poison": {"ratio": 0.5, "data": absent}}
    )
    with pytest.raises(DataError, match=rf"toy: {where}: no such data file; got /absent\.jsonl"):
        load_mixture(finetune(**fields), chat)


# --- data of a method -------------------------------------------------------------------


def booster(align, harmful, benign, **fields):
    return align(data=benign, method="booster", harmful={"data": harmful, **fields})


def test_harmful_data_are_a_mixture_beside(align, chat, data):
    spec = booster(
        align, [data("bad", 4), data("worse", 2)], [data("one", 3), data("two", 2)],
        test=[data("kept", 5)],
    )  # fmt: skip
    found = load_mixture(spec, chat)
    assert found.sizes == (3, 2)
    assert found.second.sizes == (4, 2)
    assert {chat.tokenizer.decode(row.ids)[17:21] for row in found.test} == {"kept"}
    assert len(found.test) == 5


@pytest.mark.parametrize(
    ("harmful", "test", "place", "other"),
    [
        (["one"], [], r"harmful\.data\.0", r"data\.0"),
        (["bad", "two"], [], r"harmful\.data\.1", r"data\.1"),
        (["bad"], ["bad"], r"harmful\.test\.0", r"harmful\.data\.0"),
        (["bad"], ["two"], r"harmful\.test\.0", r"data\.1"),
    ],
)
def test_sets_that_must_be_kept_apart_share_no_prompt(
    align, chat, data, harmful, test, place, other
):
    spec = booster(
        align,
        [data(name, 3, prompt="{prompt}!") for name in harmful],
        [data("one", 3), data("two", 2)],
        test=[data(name, 3) for name in test],
    )
    words = (
        rf"safe: {place}: must share no prompt with {other}; got \d of \d prompts in both, e\.g"
    )
    with pytest.raises(DataError, match=words):
        load_mixture(spec, chat)


def test_lisas_alignment_data_share_no_prompt_with_the_users(finetune, chat, data):
    def spec(name):
        poison = {"ratio": 0.5, "data": data("bad", 3)}
        lisa = {"data": [data(name, 3)]}
        return finetune(data=[data("one", 3)], poison=poison, method="lisa", lisa=lisa)

    assert load_mixture(spec("safe"), chat).second.sizes == (3,)
    words = r"toy: lisa\.data\.0: must share no prompt with poison\.data; got 3 of 3"
    with pytest.raises(DataError, match=words):
        load_mixture(spec("bad"), chat)


def test_a_set_whose_every_token_is_masked_is_refused(finetune, chat, data, monkeypatch):
    from safemerge.training import batch

    def all_prompt(sample, chat, max_tokens):
        return EncodedSample((1, 2, 3), 3)

    monkeypatch.setattr(batch, "encode", all_prompt)
    words = r"toy: data\.0: some target token must carry a loss; got none in 3 rows"
    with pytest.raises(DataError, match=words):
        load_mixture(finetune(data=[data("one", 3)]), chat)
