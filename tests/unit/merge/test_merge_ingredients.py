"""Ingredients of different form in one recipe: shards, dtypes, adapters, tied heads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError
from safemerge.merge import ResidentCheckpoints, write_merged
from safemerge.testing import pico

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def make_recipe(folders, weights, **fields):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    method = {"name": "task_arithmetic", "weights": weights}
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )


def written(recipe, out):
    write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, out)
    return AutoModelForCausalLM.from_pretrained(out).state_dict()


@pytest.fixture
def sharded(tiny_expert, tmp_path):
    """A bfloat16 copy of an expert in several files, as transformers saves it."""
    model = AutoModelForCausalLM.from_pretrained(tiny_expert, dtype=torch.bfloat16)
    folder = tmp_path / "sharded"
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    shutil.copyfile(tiny_expert / "tokenizer.json", folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_shards_in_bfloat16_a_float32_base_and_two_adapters_merge(
    tiny_base, sharded, tmp_path, dtype
):
    adapters = {
        "low": pico.pico_adapter(tiny_base, tmp_path / "low", seed=1, rank=2),
        "high": pico.pico_adapter(
            tiny_base, tmp_path / "high", seed=2, rank=8, use_rslora=True, lora_alpha=3,
            target_modules=["o_proj", "down_proj"],
        ),
    }  # fmt: skip
    weights = {"sharded": 0.5, "low": 1.5, "high": -0.7}
    recipe = make_recipe({"base": tiny_base, "sharded": sharded, **adapters}, weights, dtype=dtype)
    state = written(recipe, tmp_path / "out")
    base = load_file(tiny_base / "model.safetensors")
    expert = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.bfloat16).state_dict()
    resident = ResidentCheckpoints.open(recipe)
    for name, start in base.items():
        expected = start.double() + 0.5 * (expert[name].double() - start.double())
        for adapter in ("low", "high"):
            update = resident.checkpoints[adapter].low_rank(name)
            if update is not None:
                product = update.up.double() @ update.down.double()
                expected += weights[adapter] * update.scale * product
        asked = getattr(torch, dtype)
        assert state[name].dtype == asked
        tolerance = {"float32": 1e-6, "bfloat16": 8e-3, "float16": 1e-3}[dtype]
        torch.testing.assert_close(state[name].double(), expected, rtol=tolerance, atol=1e-6)


def test_without_a_dtype_the_same_recipe_is_refused(tiny_base, sharded):
    recipe = make_recipe({"base": tiny_base, "sharded": sharded}, {"sharded": 0.5})
    with pytest.raises(CheckpointMismatchError, match="Set dtype in the recipe"):
        ResidentCheckpoints.open(recipe)


def with_head(folder, out, *, silent=False, change=0.0):
    """A copy that stores its tied head; silent: the config does not say that it is tied."""
    copy = shutil.copytree(folder, out)
    tensors = load_file(copy / "model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING] + change
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    if silent:
        config = json.loads((copy / "config.json").read_text())
        del config["tie_word_embeddings"]
        (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("stored_by", ["base", "expert"])
@pytest.mark.parametrize("silent", [True, False])
def test_a_tied_head_that_one_model_stores_changes_nothing(
    tiny_base, tiny_expert, tmp_path, stored_by, silent
):
    plain = {"base": tiny_base, "expert": tiny_expert}
    expected = written(make_recipe(plain, {"expert": 0.5}), tmp_path / "plain")
    # NOTE: a base that says nothing and stores a head is untied for transformers' Llama too.
    silent = silent and stored_by == "expert"
    folders = {
        **plain, stored_by: with_head(plain[stored_by], tmp_path / "stored", silent=silent)
    }  # fmt: skip
    state = written(make_recipe(folders, {"expert": 0.5}), tmp_path / "out")
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert HEAD not in load_file(tmp_path / "out" / "model.safetensors")


def test_a_head_of_its_own_in_a_silent_expert_unties_the_merge(tiny_base, tiny_expert, tmp_path):
    folder = with_head(tiny_expert, tmp_path / "stored", silent=True, change=0.1)
    written(make_recipe({"base": tiny_base, "expert": folder}, {"expert": 0.5}), tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    base, expert = (load_file(at / "model.safetensors") for at in (tiny_base, folder))
    expected = torch.lerp(base[EMBEDDING].float(), expert[HEAD].float(), 0.5)
    torch.testing.assert_close(merged[HEAD].float(), expected, rtol=8e-3, atol=1e-3)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
