import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError, CheckpointMismatchError
from safemerge.testing.pico import pico_base
from safemerge.testing.statistics import write_statistics
from safemerge.weights import ModelStatistics, open_checkpoint
from safemerge.weights.statistics import STATISTICS_FILE, save_statistics

UP = "model.layers.0.mlp.up_proj.weight"
ALL = ("fisher", "gram", "importance")


@pytest.fixture
def folder(tiny_expert, tmp_path):
    return write_statistics(tmp_path / "measured", tiny_expert, model="math")


def change(folder, stem, name, value):
    tensors = load_file(folder / f"{stem}.safetensors")
    tensors[name] = value(tensors[name])
    save_file(tensors, folder / f"{stem}.safetensors")


def test_statistics_come_back_tensor_by_tensor(folder):
    found = ModelStatistics(folder)
    assert found.quantities == ALL
    assert found.digest == "stand-in-math"
    stored = load_file(folder / "fisher.safetensors")
    everything = found.at(UP, ALL)
    assert torch.equal(everything.fisher, stored[UP])
    norm = torch.cat([item.flatten() for item in stored.values()]).norm()
    assert everything.fisher_norm == pytest.approx(float(norm), rel=1e-5)
    assert everything.gram.shape == (64, 64)
    assert everything.base_importance.shape == everything.fisher.shape
    only = found.at("model.norm.weight", ["gram"])
    assert all(item is None for item in (only.fisher, only.gram, only.importance))
    assert found.gram_tokens()[UP] == (10_000, 64)


def test_equal_gram_matrices_are_stored_once(tmp_path):
    same, other = torch.eye(3), torch.ones(3, 3)
    grams = {"q": same, "k": same.clone(), "v": same.clone(), "o": other, "up": same.clone()}
    document = {"quantities": ["gram"], "digest": "d", "model": "m",
                "gram": {"tokens": dict.fromkeys(grams, 5)}}  # fmt: skip
    save_statistics(tmp_path, {"gram": grams}, document)
    assert set(load_file(tmp_path / "gram.safetensors")) == {"q", "o"}
    found = ModelStatistics(tmp_path)
    for name, gram in grams.items():
        assert torch.equal(found.at(name, ["gram"]).gram, gram)
    assert set(found.gram_tokens().values()) == {(5, 3)}


def test_sound_statistics_pass_and_are_scanned_once(folder, tiny_base, monkeypatch):
    base = open_checkpoint(tiny_base)
    ModelStatistics(folder).check(base, ALL, "recipe 12ab")
    monkeypatch.setattr(ModelStatistics, "_read", None)
    ModelStatistics(folder).check(base, ALL, "recipe 12ab")


@pytest.mark.parametrize("stem", ["fisher", "gram", "importance", "base_importance"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_values_that_cannot_be_are_refused(folder, tiny_base, stem, value):
    change(folder, stem, UP, lambda tensor: tensor.fill_(value))
    with pytest.raises(CheckpointError, match=rf"{stem} must be finite and not negative"):
        ModelStatistics(folder).check(open_checkpoint(tiny_base), ALL, "recipe 12ab")


def test_a_fisher_of_zeros_is_refused(folder, tiny_base):
    for name in load_file(folder / "fisher.safetensors"):
        change(folder, "fisher", name, torch.zeros_like)
    with pytest.raises(CheckpointError, match="fisher must not be zero everywhere"):
        ModelStatistics(folder).check(open_checkpoint(tiny_base), ALL, "recipe 12ab")


def test_statistics_of_another_architecture_are_refused(folder, tiny_base, tmp_path):
    change(folder, "gram", UP, lambda _: torch.eye(5))
    with pytest.raises(CheckpointMismatchError, match=r"gram must have shape \(64, 64\); got \(5"):
        ModelStatistics(folder).check(open_checkpoint(tiny_base), ALL, "recipe 12ab")
    deeper = open_checkpoint(pico_base(tmp_path / "deeper", num_layers=3))
    with pytest.raises(CheckpointMismatchError, match=r"fisher must .* none for 'model.layers.2"):
        ModelStatistics(folder).check(deeper, ALL, "recipe 12ab")


def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path):
    (folder / "gram.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"must hold gram\.safetensors; got no such file"):
        ModelStatistics(folder)
    with pytest.raises(CheckpointError, match="must be a folder of statistics; got no stat"):
        ModelStatistics(tmp_path)


def test_a_quantity_that_was_not_gathered_is_refused(folder):
    document = json.loads((folder / STATISTICS_FILE).read_text(encoding="utf-8"))
    document["quantities"] = ["gram"]
    (folder / STATISTICS_FILE).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"must hold fisher; got gram\. Add it to quantities"
    ):
        ModelStatistics(folder).at(UP, ["fisher"])
