import dataclasses
import json
import shutil

import pytest

from safemerge.cache import cache_dir
from safemerge.errors import CheckpointChangedError
from safemerge.training import ingredient
from safemerge.training.batch import EncodedSample, Mixture
from safemerge.training.ingredient import (
    FINGERPRINT,
    MARKER,
    ingredient_digest,
    ingredient_folder,
    is_finished,
)
from safemerge.weights import fingerprint

SET = {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}
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


def test_held_out_requests_that_end_a_stage_count(align):
    plain = Mixture((ROWS, ROWS[:1]), (0.25, 0.75), (2, 1))
    keys = {
        key(align(), mixture=dataclasses.replace(plain, asked=asked))
        for asked in ((), ((1, 2),), ((1,), (2,)))
    }
    assert len(keys) == 3


def test_an_alignment_and_a_fine_tuning_are_not_the_same_training(finetune, align):
    assert key(align()) != key(finetune())


def test_a_new_version_of_the_training_code_trains_anew(finetune, monkeypatch):
    before = key(finetune())
    monkeypatch.setattr(ingredient, "RECIPE_VERSION", ingredient.RECIPE_VERSION + 1)
    assert key(finetune()) != before


def test_no_setting_is_forgotten(finetune, align):
    """A new field must be marked, or put into the first list, on purpose."""
    counted = {
        "seed", "steps", "batch_size", "learning_rate", "weight_decay", "max_grad_norm",
        "max_tokens", "lora", "output", "dtype", "kind",
    }  # fmt: skip
    assert set(finetune().counted()) == counted
    assert set(align().counted()) == counted | {"method"}
    # How many rows were cut follows from the rows.
    names = {"sets", "weights", "sizes", "second", "test", "cut", "asked"}
    assert {field.name for field in dataclasses.fields(Mixture)} == names


def test_what_the_first_version_trained_stays_valid(finetune, align):
    """Digests that the code gave before methods, schedules and micro-batches came."""
    assert key(finetune()) == "d04642b620800338"
    assert key(align()) == "ec53b0633f8d5706"


def test_an_adapter_to_go_on_from_counts_by_its_weights(finetune, tiny_adapter, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_adapter, moved)
    before = key(finetune(adapter=str(tiny_adapter)))
    assert before == key(finetune(adapter=str(moved)))
    assert before != key(finetune())


HARMFUL = {"data": [SET], "batch_size": 4}
HARM = dataclasses.replace(MIXTURE, second=Mixture((ROWS,), (1.0,), (2,)))


@pytest.mark.parametrize(
    "fields",
    [
        {"schedule": "constant"},
        {"micro_batches": 2},
        {"harmful": {**HARMFUL, "batch_size": 5}},
        {"booster": {"lambda": 4.0}},
        {"booster": {"alpha": 0.2}},
        {"booster": {"backend": "grouped"}},
        {"booster": {"adaptive": {}}},
        {"booster": {"phases": [{"steps": 20}]}},
    ],
)
def test_every_setting_of_a_method_counts(align, fields):
    given = {"method": "booster", "harmful": HARMFUL}
    before = key(align(**given), mixture=HARM)
    assert key(align(**{**given, **fields}), mixture=HARM) != before


def test_harmful_data_count_by_content_and_what_is_only_measured_does_not(align):
    given = {"method": "booster", "harmful": HARMFUL}
    before = key(align(**given), mixture=HARM)
    other = dataclasses.replace(HARM, second=Mixture((ROWS[:1],), (1.0,), (1,)))
    assert key(align(**given), mixture=other) != before
    measured = {**HARMFUL, "test": [SET], "test_every": 3}
    again = dataclasses.replace(HARM, test=ROWS)
    assert key(align(method="booster", harmful=measured), mixture=again) == before


def test_lisas_settings_count(finetune):
    given = {"data": [SET]}
    before = key(finetune(method="lisa", lisa=given), mixture=HARM)
    for fields in ({"rho": 0.5}, {"alignment_steps": 5}, {"user_steps": 5}, {"warmup": 0.2}):
        assert key(finetune(method="lisa", lisa={**given, **fields}), mixture=HARM) != before


def test_a_folder_without_its_marker_is_unfinished():
    folder = ingredient_folder("toy", "ab12")
    assert folder == cache_dir() / "ingredients" / "toy-ab12"
    assert not is_finished(folder)
    folder.mkdir(parents=True)
    assert not is_finished(folder)
    (folder / MARKER).write_text("{}", encoding="utf-8")
    assert is_finished(folder)


def test_what_was_kept_must_be_what_was_written(tiny_expert, tmp_path):
    folder = shutil.copytree(tiny_expert, tmp_path / "made")
    (folder / MARKER).write_text(json.dumps({FINGERPRINT: fingerprint(folder)}))
    assert is_finished(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointChangedError, match=r"made: .* changed since. Remove the folder"):
        is_finished(folder)
    (folder / MARKER).write_text("{}")
    assert is_finished(folder), "made by a version that kept no fingerprint"
