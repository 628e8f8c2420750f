"""Any merge as the nearest LoRA adapter: what peft makes of it, what it loses, what it leaves."""

import json
import math

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError, ConfigError
from safemerge.merge import ResidentCheckpoints, merged_tensors, write_nearest_adapter
from safemerge.merge.nearest import adapter_places, nearest_adapter, truncated
from safemerge.testing import pico
from safemerge.weights import open_checkpoint
from safemerge.weights.checkpoint import SINGLE_FILE

TIES = {"name": "ties", "density": 0.5, "weights": {"a": 0.7, "b": 0.6}}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def only_linear(base, folder):
    """Give an expert the base's norms, embeddings and head."""
    stored, moved = load_file(base / SINGLE_FILE), load_file(folder / SINGLE_FILE)
    for name in moved:
        if "norm" in name or "embed" in name or "lm_head" in name:
            moved[name] = stored[name]
    save_file(moved, folder / SINGLE_FILE, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folders(request, tmp_path_factory):
    place = tmp_path_factory.mktemp("nearest")
    base = pico.pico_base(place / "base", tied=request.param)
    experts = {name: pico.pico_expert(base, place / name, seed=at) for at, name in enumerate("ab")}
    return {"base": base, **experts}


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    place = tmp_path_factory.mktemp("linear")
    base = pico.pico_base(place / "base", tied=False)
    return {
        "base": base,
        **{
            name: only_linear(base, pico.pico_expert(base, place / name, seed=at))
            for at, name in enumerate("ab")
        },
    }


def make_recipe(folders, method=TIES, **fields):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )


def opened(recipe):
    return ResidentCheckpoints.open(recipe).checkpoints


def loaded(base, adapter):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def nearest(update, rank):
    """The same by a whole decomposition."""
    left, values, right = torch.linalg.svd(update.double(), full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_a_truncated_matrix_is_the_nearest_of_its_rank(shape, rank):
    update = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = truncated(update, rank=rank)
    got = found.product.up.double() @ found.product.down.double()
    assert found.product.up.dtype == found.product.down.dtype == torch.float32
    assert found.product.rank == rank
    torch.testing.assert_close(got, nearest(update, rank), rtol=1e-5, atol=1e-6)
    assert found.norm == pytest.approx(float(update.norm()), rel=1e-12)
    assert found.lost == pytest.approx(float((update - got).norm()), rel=1e-9, abs=1e-12)
    torch.testing.assert_close(
        found.product.up.norm(dim=0), found.product.down.norm(dim=1), rtol=1e-5, atol=0
    )


def test_a_matrix_of_lower_rank_gets_no_more_and_loses_nothing():
    generator = torch.Generator().manual_seed(4)
    up = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    update = up @ torch.randn(2, 5, generator=generator, dtype=torch.float64)
    found = truncated(update, rank=4)
    assert found.product.rank == 2
    assert found.lost < 1e-6 * found.norm


@pytest.mark.parametrize("dtype", ["base", "bfloat16"])
def test_peft_loads_the_folder_as_the_truncated_merge(folders, tmp_path, dtype):
    recipe = make_recipe(folders, dtype=dtype)
    checkpoints = opened(recipe)
    merged = write_nearest_adapter(
        recipe, checkpoints, tmp_path / "out", rank=5, modules_to_save=True
    )
    state = loaded(folders["base"], tmp_path / "out")
    off = whole = 0.0
    errors = {}
    # In float32, whatever the recipe rounds to.
    for name, tensor in merged_tensors(make_recipe(folders, dtype="float32"), checkpoints):
        before = checkpoints["base"].tensor(name)
        update = (tensor - before).double()
        expected = tensor
        if name in merged.products:
            expected = (before.double() + nearest(update, 5)).float()
        assert state[name].dtype == torch.float32
        torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6)
        wrong = float((state[name].double() - tensor.double()).norm())
        off, whole = math.hypot(off, wrong), math.hypot(whole, float(update.norm()))
        errors[name] = wrong / float(update.norm())
    if "lm_head.weight" not in errors:
        torch.testing.assert_close(
            state["lm_head.weight"], state["model.embed_tokens.weight"], rtol=0, atol=0
        )
    products = {name: errors[name] for name in merged.products}
    assert len(products) == 14
    assert set(errors) - set(products) <= set(merged.whole)
    assert merged.left_out == ()
    assert merged.lost == pytest.approx(off / whole, rel=1e-3)
    assert 0.05 < merged.lost < 1.0
    name = max(products, key=products.get)
    assert merged.worst == (name, pytest.approx(products[name], rel=1e-3))
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"{merged.lost:.3e} of the update's Frobenius norm is lost" in card
    assert "modules whole" in card
    again = open_checkpoint(tmp_path / "out", checkpoints["base"])
    for name in errors:
        torch.testing.assert_close(again.tensor(name), state[name], rtol=1e-5, atol=1e-6)
    assert again.tied_embeddings == checkpoints["base"].tied_embeddings
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 5
    assert config["task_type"] == "CAUSAL_LM"


def test_the_same_merge_gives_the_same_bytes(linear, tmp_path):
    recipe = make_recipe(linear)
    for name in ("first", "second"):
        write_nearest_adapter(recipe, opened(recipe), tmp_path / name, rank=2)
    first, second = (tmp_path / name / "adapter_model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_the_folder_is_an_ingredient_again(linear, tmp_path):
    recipe = make_recipe(linear)
    checkpoints = opened(recipe)
    # The full rank of every weight: nothing but rounding is lost.
    merged = write_nearest_adapter(recipe, checkpoints, tmp_path / "out", rank=64)
    assert merged.lost < 1e-6
    again = open_checkpoint(tmp_path / "out", checkpoints["base"])
    for name, tensor in merged_tensors(recipe, checkpoints):
        torch.testing.assert_close(again.tensor(name), tensor, rtol=1e-5, atol=1e-6)


def test_what_no_factors_hold_is_refused_where_it_is_much(folders, tmp_path):
    recipe = make_recipe(folders)
    words = r"at most 1% .*; got \d+\.\d% in \d+, most of it in '.*'\. Add --modules-to-save"
    with pytest.raises(ConfigError, match=words):
        write_nearest_adapter(recipe, opened(recipe), tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


def test_what_no_factors_hold_is_left_out_where_it_is_little(linear, tmp_path):
    stored = load_file(linear["a"] / SINGLE_FILE)
    stored["model.norm.weight"][0] += 0.005
    changed = pico.pico_expert(linear["a"], tmp_path / "changed", seed=0, scale=0.0)
    save_file(stored, changed / SINGLE_FILE, metadata={"format": "pt"})
    method = {"name": "task_arithmetic", "weights": {"a": 1.0}}
    recipe = make_recipe({"base": linear["base"], "a": changed}, method)
    merged = write_nearest_adapter(recipe, opened(recipe), tmp_path / "out", rank=64)
    assert merged.left_out == ("model.norm.weight",)
    assert 1e-5 < merged.left_out_share < 0.01
    assert merged.lost == pytest.approx(merged.left_out_share, rel=1e-3)
    assert merged.whole == {}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "1 tensors that no factors hold differ" in card


def test_rounding_of_tensors_that_do_not_differ_is_no_update(linear):
    method = {"name": "linear", "weights": {"base": 0.3, "a": 0.3, "b": 0.4}}
    recipe = make_recipe(linear, method)
    checkpoints = opened(recipe)
    merged = nearest_adapter(
        recipe,
        checkpoints,
        merged_tensors(recipe, checkpoints),
        adapter_places(checkpoints["base"]),
        rank=2,
        modules_to_save=True,
    )
    assert merged.whole == {}
    assert merged.left_out == ()
    assert Q_PROJ in merged.products


def test_a_merge_that_changes_no_linear_weight_is_refused(linear, tmp_path):
    recipe = make_recipe(linear, {**TIES, "lambda": 0.0})
    with pytest.raises(ConfigError, match=r"must change some linear weight .*got none"):
        write_nearest_adapter(recipe, opened(recipe), tmp_path / "out", rank=2)


def test_more_rows_than_the_bases_are_refused(linear, tmp_path):
    more = pico.pico_with_tokens(linear["a"], tmp_path / "more", ["<|a|>"], seed=1)
    recipe = make_recipe({**linear, "a": more}, vocabulary="union")
    with pytest.raises(CheckpointMismatchError, match="keeps the base's rows and output head"):
        write_nearest_adapter(recipe, opened(recipe), tmp_path / "out", rank=2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_conv1d_weights_with_biases_are_loaded_as_the_truncated_merge(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, tie_word_embeddings=False, **sizes))
    model.save_pretrained(tmp_path / "base")
    expert = pico.pico_expert(tmp_path / "base", tmp_path / "a", seed=1)
    stored, moved = load_file(tmp_path / "base" / SINGLE_FILE), load_file(expert / SINGLE_FILE)
    biased = "c_attn"  # a trained bias: its module is stored whole
    moved = {
        name: tensor if name.endswith(("c_proj.weight", "c_attn.weight", "c_attn.bias"))
        else stored[name]
        for name, tensor in moved.items()
    }  # fmt: skip
    save_file(moved, expert / SINGLE_FILE, metadata={"format": "pt"})
    method = {"name": "task_arithmetic", "weights": {"a": 1.0}}
    recipe = make_recipe({"base": tmp_path / "base", "a": expert}, method)
    checkpoints = opened(recipe)
    merged = write_nearest_adapter(
        recipe, checkpoints, tmp_path / "out", rank=3, modules_to_save=True
    )
    assert {biased in name for name in merged.whole} == {True}
    assert {name.split(".")[-2] for name in merged.products} == {"c_proj"}
    state = loaded(tmp_path / "base", tmp_path / "out")
    for name, tensor in merged_tensors(recipe, checkpoints):
        before, expected = checkpoints["base"].tensor(name), tensor
        if name in merged.products:
            expected = (before.double() + nearest(tensor - before, 3)).float()
        key = name if name in state else f"transformer.{name}"
        torch.testing.assert_close(state[key], expected, rtol=1e-5, atol=1e-6)
