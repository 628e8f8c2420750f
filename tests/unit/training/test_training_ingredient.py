import dataclasses

import pytest

from safemerge.cache import cache_dir
from safemerge.training import ingredient
from safemerge.training.batch import EncodedSample, Mixture
from safemerge.training.ingredient import (
    MARKER,
    ingredient_digest,
    ingredient_folder,
    is_finished,
)

ROWS = (EncodedSample((1, 2, 3), 1), EncodedSample((1, 4), 1))
MIXTURE = Mixture((ROWS, ROWS[:1]), (0.25, 0.75), (2, 1))


def key(spec, *, base="f" * 16, mixture=MIXTURE):
    return ingredient_digest(spec, base_fingerprint=base, mixture=mixture)


def test_the_digest_is_the_same_for_the_same_training(finetune):
    assert key(finetune()) == key(finetune())
    assert len(key(finetune())) == 16


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "other"},
        {"workers": {"num_workers": 4}},
        {"checkpoint_every": 7},
        {"base": {"name": "moved", "path": "/elsewhere"}},
        {"data": [{"source": {"kind": "file", "path": "/moved.jsonl"}, "response": "{answer}"}]},
    ],
)
def test_what_does_not_change_the_weights_does_not_count(finetune, fields):
    assert key(finetune(**fields)) == key(finetune())


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": 1},
        {"steps": 21},
        {"batch_size": 9},
        {"learning_rate": 6e-4},
        {"weight_decay": 0.1},
        {"max_grad_norm": 0.5},
        {"max_tokens": 128},
        {"lora": {"rank": 16}},
        {"lora": {"first_layer": 1}},
        {"output": "adapter"},
        {"dtype": "float32"},
    ],
)
def test_every_setting_that_changes_the_weights_counts(finetune, fields):
    assert key(finetune(**fields)) != key(finetune())


def test_the_base_counts_by_its_weights(finetune):
    assert key(finetune(), base="0" * 16) != key(finetune())


@pytest.mark.parametrize(
    "mixture",
    [
        Mixture((ROWS, ROWS[1:]), (0.25, 0.75), (2, 1)),
        Mixture((ROWS[::-1], ROWS[:1]), (0.25, 0.75), (2, 1)),
        Mixture((ROWS[:1], ROWS), (0.25, 0.75), (1, 2)),
        Mixture((ROWS, ROWS[:1]), (0.5, 0.5), (2, 1)),
        Mixture(((EncodedSample((1, 2, 3), 2), ROWS[1]), ROWS[:1]), (0.25, 0.75), (2, 1)),
    ],
)
def test_the_data_count_by_their_tokens_order_targets_and_weights(finetune, mixture):
    assert key(finetune(), mixture=mixture) != key(finetune())


def test_an_alignment_and_a_fine_tuning_are_not_the_same_training(finetune, align):
    assert key(align()) != key(finetune())


def test_a_new_version_of_the_training_code_trains_anew(finetune, monkeypatch):
    before = key(finetune())
    monkeypatch.setattr(ingredient, "RECIPE_VERSION", ingredient.RECIPE_VERSION + 1)
    assert key(finetune()) != before


def test_no_setting_is_forgotten(finetune):
    """A new field must be put into one of the two lists above, on purpose."""
    counted = {
        "seed", "steps", "batch_size", "learning_rate", "weight_decay", "max_grad_norm",
        "max_tokens", "lora", "output", "dtype", "kind",
    }  # fmt: skip
    by_content = {"base", "data", "poison"}
    ignored = {"name", "workers", "checkpoint_every"}
    assert set(finetune().resolved()) == counted | by_content | ignored
    assert {field.name for field in dataclasses.fields(Mixture)} == {"sets", "weights", "sizes"}


def test_a_folder_without_its_marker_is_unfinished():
    folder = ingredient_folder("toy", "ab12")
    assert folder == cache_dir() / "ingredients" / "toy-ab12"
    assert not is_finished(folder)
    folder.mkdir(parents=True)
    assert not is_finished(folder)
    (folder / MARKER).write_text("{}", encoding="utf-8")
    assert is_finished(folder)
