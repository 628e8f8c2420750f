import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import ConfigError, MergeError
from safemerge.merge import (
    ThresholdCache,
    merge_order,
    merge_tensor,
    merged_dtype,
    merged_tensors,
    stream,
)
from safemerge.testing.pico import pico_base
from safemerge.weights import layer_of, open_checkpoint


@pytest.fixture
def checkpoints(tiny_base, tiny_experts):
    opened = {name: open_checkpoint(path) for name, path in tiny_experts.items()}
    return {"base": open_checkpoint(tiny_base), **opened}


def recipe(checkpoints, method=None, **fields):
    refs = [
        {"name": name, "path": str(checkpoint.folder)} for name, checkpoint in checkpoints.items()
    ]
    weights = dict.fromkeys(list(checkpoints)[1:], 0.5)
    declared = method or {"name": "task_arithmetic", "weights": weights}
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": declared, **fields}
    )


def test_every_tensor_of_the_base_is_given_once_and_merged(checkpoints):
    merged = dict(merged_tensors(recipe(checkpoints), checkpoints))
    base, math, safety = checkpoints.values()
    assert set(merged) == set(base.names)
    for name, tensor in merged.items():
        origin = base.tensor(name)
        change = 0.5 * (math.tensor(name) - origin) + 0.5 * (safety.tensor(name) - origin)
        torch.testing.assert_close(tensor, origin + change)


def test_tensors_of_a_layer_are_adjacent(checkpoints):
    names = [name for name, _ in merged_tensors(recipe(checkpoints), checkpoints)]
    layers = [layer_of(name) for name in names]
    assert layers == [None, *[0] * 9, *[1] * 9, None]
    assert (names[0], names[-1]) == ("model.embed_tokens.weight", "model.norm.weight")


def test_layers_are_ordered_by_number():
    names = ["lm_head.weight", *(f"h.{at}.w" for at in range(12)), "transformer.wte.weight"]
    expected = ("transformer.wte.weight", *(f"h.{at}.w" for at in range(12)), "lm_head.weight")
    assert merge_order(reversed(names)) == expected


def test_tensors_are_new_and_may_be_kept(checkpoints):
    kept = dict(merged_tensors(recipe(checkpoints), checkpoints))
    copies = {name: tensor.clone() for name, tensor in kept.items()}
    for _, tensor in merged_tensors(recipe(checkpoints), checkpoints):
        tensor.fill_(9.0)
    assert all(torch.equal(kept[name], copies[name]) for name in kept)
    assert len({tensor.data_ptr() for tensor in kept.values()}) == len(kept)


def test_experts_of_weight_zero_are_not_read(checkpoints, monkeypatch):
    method = {"name": "task_arithmetic", "weights": {"math": 0.5, "safety": 0.0}}
    monkeypatch.setattr(checkpoints["safety"], "tensor", None)
    assert len(list(merged_tensors(recipe(checkpoints, method), checkpoints))) == 20


@pytest.mark.parametrize(
    ("declared", "dtype"), [("base", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_recipe_gives_the_dtype(checkpoints, declared, dtype):
    asked = recipe(checkpoints, dtype=declared)
    assert {tensor.dtype for _, tensor in merged_tensors(asked, checkpoints)} == {dtype}
    assert merged_dtype(asked, checkpoints["base"], "model.norm.weight") == dtype


def test_an_adapter_is_an_expert_like_any_other(tiny_base, tiny_adapter):
    base = open_checkpoint(tiny_base)
    checkpoints = {"base": base, "lora": open_checkpoint(tiny_adapter, base)}
    method = {"name": "task_arithmetic", "weights": {"lora": 1.0}}
    for name, tensor in merged_tensors(recipe(checkpoints, method), checkpoints):
        torch.testing.assert_close(tensor, checkpoints["lora"].tensor(name))


def test_a_tied_head_that_a_checkpoint_stores_is_left_out(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["base"].folder, tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors")
    opened = {**checkpoints, "base": open_checkpoint(folder)}
    names = [name for name, _ in merged_tensors(recipe(opened), opened)]
    assert names == list(merge_order(checkpoints["base"].names))


def test_an_untied_head_is_merged_last(tmp_path):
    base = open_checkpoint(pico_base(tmp_path / "untied", tied=False))
    checkpoints = {"base": base, "same": base}
    names = [name for name, _ in merged_tensors(recipe(checkpoints), checkpoints)]
    assert set(names[-2:]) == {"lm_head.weight", "model.norm.weight"}


def test_thresholds_of_one_candidate_serve_the_next(checkpoints):
    cache = ThresholdCache()
    for weight in (0.5, 0.9):
        method = {"name": "ties", "weights": {"math": weight, "safety": 1.0}, "density": 0.4}
        list(merged_tensors(recipe(checkpoints, method), checkpoints, thresholds=cache))
        assert len(cache) == 40


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("small", [0, 5000, 1 << 22])
def test_tensors_merged_side_by_side_are_those_of_one_thread(
    checkpoints, threads, monkeypatch, small
):
    asked = recipe(checkpoints)
    threads(1)
    alone = list(merged_tensors(asked, checkpoints))
    threads(3)
    monkeypatch.setattr(stream, "_SMALL", small)
    places = {}

    def destination(name, dtype, shape):
        places[name] = torch.empty(shape, dtype=dtype)
        return places[name]

    beside = list(merged_tensors(asked, checkpoints, destination=destination))
    assert [name for name, _ in beside] == [name for name, _ in alone]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone, beside, strict=True))
    assert all(tensor is places[name] for name, tensor in beside)


def test_who_stops_listening_leaves_no_merge_behind(checkpoints, threads, monkeypatch):
    threads(2)
    running = []

    def counted(*rest, **named):
        running.append(named["tensor"])
        time.sleep(0.02)
        running.remove(named["tensor"])
        return merge_tensor(*rest, **named)

    monkeypatch.setattr(stream, "merge_tensor", counted)
    given = merged_tensors(recipe(checkpoints), checkpoints)
    next(given)
    given.close()
    assert running == []


def test_a_missing_checkpoint_is_told_at_the_call(checkpoints):
    asked = recipe(checkpoints)
    del checkpoints["safety"]
    with pytest.raises(MergeError, match="got no 'safety' among base, math"):
        merged_tensors(asked, checkpoints)


def test_a_group_that_matches_nothing_is_told_at_the_call(checkpoints):
    asked = recipe(checkpoints, layer_groups=[{"name": "late", "layers": "2-3"}])
    with pytest.raises(ConfigError, match=r"layer_groups\.late"):
        merged_tensors(asked, checkpoints)


def test_a_broken_expert_is_told_by_tensor(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints["math"].folder, tmp_path / "math")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    opened = {**checkpoints, "math": open_checkpoint(folder)}
    with pytest.raises(MergeError, match=r"tensor 'model\.norm\.weight': merged weights must be"):
        list(merged_tensors(recipe(opened), opened))
