"""Inputs of a merge copied ahead, on a CPU: copies change no value and are bounded."""

import gc
import weakref

import pytest
import torch

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointError
from safemerge.merge import merged_tensors
from safemerge.merge.transfer import DeviceInputs
from safemerge.weights import open_checkpoint


@pytest.fixture
def checkpoints(tiny_base, tiny_experts):
    paths = {"base": tiny_base, **tiny_experts}
    return {name: open_checkpoint(path) for name, path in paths.items()}


def recipe(checkpoints, **method):
    refs = [{"name": name, "path": str(opened.folder)} for name, opened in checkpoints.items()]
    return MergeRecipe.model_validate({"base": refs[0], "experts": refs[1:], "method": method})


@pytest.fixture(params=["linear", "ties", "dare_ties"])
def declared(request, checkpoints):
    weights = {"math": 0.4, "safety": 0.6}
    density = {} if request.param == "linear" else {"density": dict.fromkeys(weights, 0.5)}
    return recipe(checkpoints, name=request.param, weights=weights, **density)


@pytest.mark.parametrize("keep", ["mapped", "pinned", "device"])
def test_merges_of_copied_inputs_are_those_of_mapped_ones(checkpoints, declared, keep):
    inputs = DeviceInputs("cpu", keep=keep)
    expected = dict(merged_tensors(declared, checkpoints))
    for _ in range(2):  # the second time from what was kept
        found = dict(merged_tensors(declared, checkpoints, inputs=inputs))
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("keep", "reads"), [("mapped", 2), ("pinned", 1), ("device", 1)])
def test_what_is_kept_is_read_once(checkpoints, monkeypatch, keep, reads):
    base = checkpoints["base"]
    read, seen = base.tensor, []
    monkeypatch.setattr(base, "tensor", lambda name: seen.append(name) or read(name))
    inputs = DeviceInputs("cpu", keep=keep)
    declared = recipe(checkpoints, name="linear", weights={"base": 0.5, "math": 0.5})
    for _ in range(2):
        list(merged_tensors(declared, checkpoints, inputs=inputs))
    assert len(seen) == reads * len(base.distinct_names)


def test_two_tensors_inputs_are_held_at_a_time(checkpoints, monkeypatch):
    held, most = set(), []
    read = {name: opened.tensor for name, opened in checkpoints.items()}

    def fresh(name):
        tensor = read["base"](name).clone()
        held.add(name)
        weakref.finalize(tensor, held.discard, name)
        most.append(len(held))
        return tensor

    monkeypatch.setattr(checkpoints["base"], "tensor", fresh)
    declared = recipe(checkpoints, name="linear", weights={"base": 0.5, "math": 0.5})
    for _ in merged_tensors(declared, checkpoints, inputs=DeviceInputs("cpu")):
        gc.collect()
    assert max(most) == 2


def test_what_is_kept_of_a_checkpoint_goes_with_it(checkpoints):
    inputs = DeviceInputs("cpu", keep="pinned")
    declared = recipe(checkpoints, name="linear", weights={"math": 1.0})
    list(merged_tensors(declared, checkpoints, inputs=inputs))
    assert len(inputs._kept) > 0
    checkpoints.clear()
    gc.collect()
    assert len(inputs._kept) == 0


def test_a_tensor_that_cannot_be_read_ends_the_merge(checkpoints, monkeypatch):
    def broken(name):
        raise CheckpointError(f"tensor '{name}': cannot be read.")

    monkeypatch.setattr(checkpoints["math"], "tensor", broken)
    declared = recipe(checkpoints, name="linear", weights={"math": 1.0})
    with pytest.raises(CheckpointError, match="cannot be read"):
        list(merged_tensors(declared, checkpoints, inputs=DeviceInputs("cpu")))
