"""A gathering that was interrupted goes on, and gives the bits of one that was not."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.config.statistics import StatisticsSpec
from safemerge.training.batch import EncodedSample
from safemerge.training.partial_sums import FIRST_SAVE_S, PartialSums
from safemerge.training.statistics import Gathering

ROWS = [
    EncodedSample((5, 9, 30, 31, 32), 2),
    EncodedSample((5, 40, 41, 42, 43, 44, 45), 4),
    EncodedSample((5, 50, 51), 1),
]
QUANTITIES = ("fisher", "gram", "importance")


@pytest.fixture
def start(tiny_base):
    declared = StatisticsSpec.model_validate(
        {
            "name": "toy",
            "data": [
                {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}
            ],
            "quantities": list(QUANTITIES),
        }
    )

    def new():
        model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        return Gathering(model, declared, QUANTITIES)

    return new


def add(gathering, rows, first=0):
    for index, row in enumerate(rows, start=first):
        gathering.add(row, index=index)
    return gathering


def test_an_interrupted_gathering_gives_the_bits_of_a_whole_one(start, tmp_path, exact):
    whole, told = add(start(), ROWS).finish()
    PartialSums(tmp_path, "model", rank=0, world_size=1).save(add(start(), ROWS[:2]), now=True)
    again = start()
    kept = PartialSums(tmp_path, "model", rank=0, world_size=1)
    assert kept.restore(again) == 2
    found, document = add(again, ROWS[2:], first=2).finish()
    assert document == told
    for quantity in QUANTITIES:
        for name, value in whole[quantity].items():
            assert torch.equal(found[quantity][name], value), (quantity, name)


def test_nothing_kept_begins_at_the_first_row(start, tmp_path):
    assert PartialSums(tmp_path / "new", "model", rank=0, world_size=1).restore(start()) == 0


@pytest.mark.parametrize(("part", "rank", "world_size"), [("base", 0, 1), ("model", 1, 2)])
def test_another_share_of_the_rows_is_not_taken(start, tmp_path, part, rank, world_size):
    PartialSums(tmp_path, "model", rank=0, world_size=1).save(add(start(), ROWS), now=True)
    assert PartialSums(tmp_path, part, rank=rank, world_size=world_size).restore(start()) == 0


def test_saves_are_rare_and_whole(start, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("safemerge.training.partial_sums.time.monotonic", lambda: clock[0])
    kept = PartialSums(tmp_path, "model", rank=0, world_size=1)
    gathering = add(start(), ROWS[:1])
    kept.save(gathering)
    assert list(tmp_path.iterdir()) == []
    clock[0] = FIRST_SAVE_S
    kept.save(gathering)
    (file,) = tmp_path.iterdir()
    add(gathering, ROWS[1:2], first=1)
    kept.save(gathering)
    assert torch.load(file, weights_only=True)["num_rows"] == 1, "saved a moment ago"
    clock[0] += FIRST_SAVE_S
    kept.save(gathering)
    assert torch.load(file, weights_only=True)["num_rows"] == 2
