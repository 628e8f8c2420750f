import json
import math
import shutil
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointMismatchError, ConfigError, MergeError, UserError
from safemerge.merge import (
    ResidentCheckpoints,
    check_adapter_recipe,
    merge_adapters,
    merged_tensors,
)
from safemerge.merge.adapter import write_adapter
from safemerge.merge.lora import Product, reduce_rank
from safemerge.testing import pico
from safemerge.weights import open_checkpoint
from safemerge.weights.notice import adapter_notices

# peft says so where an embedding has factors, and stores a copy of the base's beside them.
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
TASK_ARITHMETIC = {
    "name": "task_arithmetic",
    "weights": {"low": 0.8, "high": -0.5, "wide": 1.3},
    "lambda": 0.7,
}
LINEAR = {"name": "linear", "weights": {"base": 0.4, "low": 0.8, "high": 1.0, "wide": -0.3}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """An untied base and adapters of other rank, scale and targets."""
    place = tmp_path_factory.mktemp("lora")
    base = pico.pico_base(place / "base", tied=False)
    return {
        "base": base,
        "low": pico.pico_adapter(base, place / "low", seed=1, rank=2),
        "high": pico.pico_adapter(
            base, place / "high", seed=2, rank=8, use_rslora=True, lora_alpha=3,
            target_modules=["q_proj", "o_proj", "down_proj"], rank_pattern={"o_proj": 3},
            alpha_pattern={"o_proj": 5},
        ),
        "wide": pico.pico_adapter(
            base, place / "wide", seed=3, rank=4,
            target_modules=["embed_tokens", "lm_head", "layers.1.mlp.up_proj"],
        ),
    }  # fmt: skip


def make_recipe(folders, method=TASK_ARITHMETIC, **fields):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    return MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )


def opened(recipe):
    return ResidentCheckpoints.open(recipe).checkpoints


def loaded(base, adapter):
    """What peft makes of an adapter on the base, as a plain state."""
    model = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


def assert_same(state, expected, tolerance=1e-6):
    assert set(state) >= set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=tolerance, atol=tolerance)


GROUPED = {
    "name": "task_arithmetic",
    "weights": {
        "low": {"early": 0.5, "default": 0.0},
        "high": {"early": 0.0, "default": [0.2, 1.0]},
        "wide": 1.0,
    },
}
EARLY = [{"name": "early", "layers": "0"}]


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        (TASK_ARITHMETIC, {}),
        (LINEAR, {}),
        ({**LINEAR, "weights": {"low": 0.5, "high": 0.5}, "normalize": False}, {}),
        (GROUPED, {"layer_groups": EARLY}),
    ],
    ids=["task_arithmetic", "linear", "linear_whole", "by_layer"],
)
def test_peft_loads_the_folder_as_the_dense_merge(folders, tmp_path, method, fields):
    recipe = make_recipe(folders, method, **fields)
    checkpoints = opened(recipe)
    merged = write_adapter(recipe, checkpoints, tmp_path / "out")
    assert merged.lost == merged.worst[1] == 0.0
    assert_same(
        loaded(folders["base"], tmp_path / "out"), dict(merged_tensors(recipe, checkpoints))
    )


def test_the_folder_is_an_ingredient_again(folders, tmp_path):
    recipe = make_recipe(folders)
    checkpoints = opened(recipe)
    write_adapter(recipe, checkpoints, tmp_path / "out")
    again = open_checkpoint(tmp_path / "out", checkpoints["base"])
    for name, tensor in merged_tensors(recipe, checkpoints):
        torch.testing.assert_close(again.tensor(name), tensor, rtol=1e-6, atol=1e-6)


def test_ranks_add_up_where_targets_meet_and_every_scale_is_one(folders, tmp_path):
    recipe = make_recipe(folders)
    merged = write_adapter(recipe, opened(recipe), tmp_path / "out")
    ranks = {name.split(".")[-2]: product.rank for name, product in merged.products.items()}
    assert ranks == {
        "q_proj": 10, "v_proj": 2, "o_proj": 3, "down_proj": 10, "up_proj": 4,
        "embed_tokens": 4, "lm_head": 4,
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 10
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert config["rank_pattern"] == {
        "v_proj": 2, "o_proj": 3, "up_proj": 4, "embed_tokens": 4,
        "lm_head": 4,
    }  # fmt: skip
    assert config["target_modules"] == [
        "down_proj", "embed_tokens", "lm_head", "model.layers.1.mlp.up_proj", "o_proj", "q_proj",
        "v_proj",
    ]  # fmt: skip
    assert config["task_type"] == "CAUSAL_LM"


def test_a_local_base_is_named_by_its_path_from_the_folder(folders, tmp_path):
    base = shutil.copytree(folders["base"], tmp_path / "models" / "base")
    for name in ("low", "wide"):
        place = shutil.copytree(folders[name], tmp_path / name)
        config = json.loads((place / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (place / "adapter_config.json").write_text(json.dumps(config))
    moved = {"base": base, "low": tmp_path / "low", "wide": tmp_path / "wide"}
    method = {"name": "task_arithmetic", "weights": {"low": 0.8, "wide": 0.5}}
    recipe = make_recipe(moved, method)
    checkpoints = opened(recipe)
    write_adapter(recipe, checkpoints, tmp_path / "out")
    text = (tmp_path / "out" / "adapter_config.json").read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["base_model_name_or_path"] == "../models/base"
    again = open_checkpoint(tmp_path / "out", checkpoints["base"])
    assert again.named_base == str(base)
    assert adapter_notices({"again": again}) == ()


def test_files_are_the_expected_ones_and_the_card_says_what_they_are(folders, tmp_path):
    recipe = make_recipe(folders)
    write_adapter(recipe, opened(recipe), tmp_path / "out")
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "safemerge_recipe.json",
    }  # fmt: skip
    assert len({stat.S_IMODE(file.stat().st_mode) for file in out.iterdir()}) == 1
    card = (out / "README.md").read_text()
    for words in ("library_name: peft", "- lora", recipe.digest, "nothing approximated"):
        assert words in card
    assert str(folders["base"].parent) not in card
    text = (out / "safemerge_recipe.json").read_text()
    assert str(tmp_path) not in text
    assert MergeRecipe.model_validate_json(text).located(out) == recipe


def test_a_coefficient_of_zero_leaves_factors_out(folders):
    recipe = make_recipe(folders, GROUPED, layer_groups=EARLY)
    products = merge_adapters(recipe, opened(recipe)).products
    assert products[Q_PROJ].rank == 2
    assert products[Q_PROJ.replace("layers.0", "layers.1")].rank == 8
    assert "model.layers.1.self_attn.v_proj.weight" not in products


def test_modules_that_an_adapter_stores_whole_are_merged_whole(folders, tmp_path):
    saved = pico.pico_adapter(
        folders["base"], tmp_path / "saved", seed=4, modules_to_save=["lm_head", "norm"]
    )
    several = {**folders, "saved": saved}
    method = {"name": "task_arithmetic", "weights": {"low": 0.8, "wide": 0.5, "saved": 0.6}}
    recipe = make_recipe(several, method)
    checkpoints = opened(recipe)
    merged = write_adapter(recipe, checkpoints, tmp_path / "out")
    assert set(merged.whole) >= {"lm_head.weight", "model.norm.weight"}
    assert not set(merged.whole) & set(merged.products)
    assert_same(
        loaded(folders["base"], tmp_path / "out"), dict(merged_tensors(recipe, checkpoints))
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_factors_have_the_dtype_asked_for(folders, tmp_path, dtype):
    recipe = make_recipe(folders, dtype=dtype)
    write_adapter(recipe, opened(recipe), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in stored.values()} == {f"torch.{dtype}"}


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), inner=st.integers(1, 16),
    rank=st.integers(1, 16), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_reducing_gives_the_nearest_product_and_its_distance(rows, columns, inner, rank, seed):
    generator = torch.Generator().manual_seed(seed)
    product = Product(
        torch.randn(rows, inner, generator=generator),
        torch.randn(inner, columns, generator=generator),
    )
    reduced = reduce_rank(product, rank=rank)
    whole = product.up.double() @ product.down.double()
    got = reduced.product.up.double() @ reduced.product.down.double()
    assert reduced.product.rank == min(rank, inner) or reduced.product.rank < inner
    values = torch.linalg.svdvals(whole)
    scale = float(values.norm())
    nearest = float(values[rank:].norm()) if inner > rank else 0.0
    assert reduced.norm == pytest.approx(scale, rel=1e-9)
    assert reduced.lost == pytest.approx(nearest, rel=1e-9, abs=1e-9 * scale)
    assert float((whole - got).norm()) == pytest.approx(nearest, rel=1e-4, abs=1e-5 * scale)


def test_a_reduced_adapter_says_what_it_lost(folders, tmp_path):
    recipe = make_recipe(folders)
    checkpoints = opened(recipe)
    merged = write_adapter(recipe, checkpoints, tmp_path / "out", rank=3)
    assert max(product.rank for product in merged.products.values()) == 3
    state = loaded(folders["base"], tmp_path / "out")
    off, whole, errors = 0.0, 0.0, {}
    for name, tensor in merged_tensors(recipe, checkpoints):
        update = tensor - checkpoints["base"].tensor(name)
        wrong = float((state[name] - tensor).double().norm())
        off, whole = math.hypot(off, wrong), math.hypot(whole, float(update.double().norm()))
        errors[name] = wrong / max(float(update.norm()), 1e-30) if update.any() else 0.0
    assert merged.lost == pytest.approx(off / whole, rel=1e-4)
    assert 0.05 < merged.lost < 1.0
    assert merged.worst == (max(errors, key=errors.get), pytest.approx(max(errors.values()), 1e-4))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{merged.lost:.3e} of the update's Frobenius norm is lost" in card


def test_a_rank_that_is_enough_loses_nothing(folders):
    recipe = make_recipe(folders)
    checkpoints = opened(recipe)
    whole, reduced = (merge_adapters(recipe, checkpoints, rank=rank) for rank in (None, 10))
    assert reduced.lost == 0.0
    for name, product in whole.products.items():
        assert torch.equal(product.up, reduced.products[name].up)


# --- refusals ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"method": {"name": "ties", "weights": {"low": 1.0}}},
            r"task_arithmetic and linear only.*got 'ties'\. Drop --adapter",
        ),
        ({"steps": [{"name": "pre_post", "alpha": 0.5}]}, "without steps only.*got 'pre_post'"),
    ],
)
def test_what_is_not_linear_is_refused_before_work(folders, changes, words):
    method = {"name": "task_arithmetic", "weights": {"low": 1.0}}
    with pytest.raises(ConfigError, match=words):
        check_adapter_recipe(make_recipe(folders, **{"method": method, **changes}))


def refused(folders, words, error=CheckpointMismatchError, method=TASK_ARITHMETIC, **fields):
    recipe = make_recipe(folders, method, **fields)
    with pytest.raises(error, match=words):
        merge_adapters(recipe, opened(recipe))


def test_linear_weights_that_do_not_leave_the_base_whole_are_refused(folders):
    method = {"name": "linear", "weights": {"base": 1.0, "low": 0.5}, "normalize": False}
    refused(folders, "weights of linear must sum to 1.*got 1.5", ConfigError, method)


def test_a_whole_model_among_the_experts_is_refused(folders, tmp_path):
    dense = pico.pico_expert(folders["base"], tmp_path / "dense", seed=5)
    method = {"name": "task_arithmetic", "weights": {"low": 1.0, "dense": 1.0}}
    words = "expert 'dense': must be a LoRA adapter .*got a whole model"
    refused({**folders, "dense": dense}, words, method=method)
    # One that the method does not merge may be there.
    recipe = make_recipe(
        {**folders, "dense": dense}, {"name": "task_arithmetic", "weights": {"low": 1.0}}
    )
    assert merge_adapters(recipe, opened(recipe)).products


def test_trained_biases_are_refused(folders, tmp_path):
    biased = pico.pico_adapter(folders["base"], tmp_path / "biased", seed=6, bias="lora_only")
    method = {"name": "task_arithmetic", "weights": {"biased": 1.0}}
    words = "expert 'biased': must train no biases .*got bias 'lora_only'"
    refused({**folders, "biased": biased}, words, method=method)


def test_another_vocabulary_is_refused(folders, tmp_path):
    more = pico.pico_with_tokens(
        pico.pico_expert(folders["base"], tmp_path / "e", seed=1),
        tmp_path / "m",
        ["<|a|>"],
        seed=1,
    )
    several = {**folders, "more": more}
    refused(several, "expert 'high': an adapter keeps the base's rows", vocabulary="union")
    recipe = make_recipe(several, vocabulary="base")
    assert merge_adapters(recipe, opened(recipe)).products


def test_a_merge_that_changes_nothing_is_refused(folders):
    method = {**TASK_ARITHMETIC, "lambda": 0.0}
    refused(folders, "must change some weight by a product of factors", ConfigError, method)


def test_factors_that_overflow_are_refused(folders):
    method = {"name": "task_arithmetic", "weights": {"low": 1e30}}
    refused(folders, "merged factors must be finite", MergeError, method, dtype="float16")


def test_what_is_no_product_of_two_factors_is_refused(folders, tmp_path):
    dora = pico.pico_adapter(folders["base"], tmp_path / "dora", seed=1, use_dora=True)
    method = {"name": "task_arithmetic", "weights": {"dora": 1.0}}
    words = "expert 'dora': must change tensors by a product of two factors"
    refused({**folders, "dora": dora}, words, method=method)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_adapter_of_conv1d_and_linear_modules_is_loaded_as_the_dense_merge(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, tie_word_embeddings=False, **sizes))
    model.save_pretrained(tmp_path / "base")
    lora = {"target_modules": r".*attn\.c_proj|lm_head"}
    folders = {
        name: pico.pico_adapter(tmp_path / "base", tmp_path / name, seed=seed, **lora)
        for seed, name in enumerate(("a", "b"))
    }
    method = {"name": "task_arithmetic", "weights": {"a": 0.5, "b": 1.0}}
    recipe = make_recipe({"base": tmp_path / "base", **folders}, method)
    checkpoints = opened(recipe)
    write_adapter(recipe, checkpoints, tmp_path / "out")
    assert_same(
        loaded(tmp_path / "base", tmp_path / "out"), dict(merged_tensors(recipe, checkpoints))
    )


def test_a_folder_with_files_is_refused_and_left_alone(folders, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    recipe = make_recipe(folders)
    with pytest.raises(UserError, match="must be missing or empty"):
        write_adapter(recipe, opened(recipe), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_nan_in_a_factor_is_found_at_opening(folders, tmp_path):
    broken = shutil.copytree(folders["low"], tmp_path / "low")
    factors = load_file(broken / "adapter_model.safetensors")
    next(iter(factors.values()))[0, 0] = float("nan")
    save_file(factors, broken / "adapter_model.safetensors")
    with pytest.raises(UserError, match="must be finite"):
        opened(make_recipe({**folders, "low": broken}))
