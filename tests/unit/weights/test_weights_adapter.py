import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from safemerge.errors import CheckpointError
from safemerge.testing.pico import pico_adapter, pico_base
from safemerge.weights import open_checkpoint

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def assert_dense_as_peft_merges_it(base, adapter):
    checkpoint = open_checkpoint(adapter, open_checkpoint(base))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged = model.merge_and_unload().state_dict()
    for name in checkpoint.names:
        torch.testing.assert_close(checkpoint.tensor(name), merged[name], rtol=1e-6, atol=1e-7)
    return checkpoint


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2, "1.mlp.up_proj": 6}},
        {"alpha_pattern": {"v_proj": 32, "model.layers.0.mlp.down_proj": 3}},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"bias": "all"},
    ],
    ids=str,
)
def test_dense_tensors_are_those_peft_merges(tiny_base, tmp_path, lora):
    assert_dense_as_peft_merges_it(tiny_base, pico_adapter(tiny_base, tmp_path, seed=5, **lora))


def test_modules_to_save_replace_the_bases(tmp_path):
    base = pico_base(tmp_path / "base", tied=False)
    adapter = pico_adapter(base, tmp_path / "adapter", seed=5, modules_to_save=["lm_head"])
    checkpoint = assert_dense_as_peft_merges_it(base, adapter)
    assert "lm_head.weight" in checkpoint.adapted_names


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers:UserWarning")
def test_factors_of_an_untied_embedding_are_transposed(tmp_path):
    base = pico_base(tmp_path / "base", tied=False)
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    adapter = pico_adapter(base, tmp_path / "adapter", seed=5, **lora)
    checkpoint = assert_dense_as_peft_merges_it(base, adapter)
    assert "model.embed_tokens.weight" in checkpoint.adapted_names


@pytest.mark.filterwarnings("ignore:Setting .save_embedding_layers:UserWarning")
def test_a_tied_embedding_is_not_adapted(tiny_base, tmp_path):
    untied = pico_base(tmp_path / "base", tied=False)
    lora = {"target_modules": ["embed_tokens"]}
    adapter = pico_adapter(untied, tmp_path / "adapter", seed=5, **lora)
    with pytest.raises(CheckpointError, match=r"'model\.embed_tokens\.weight': a tied embedding"):
        open_checkpoint(adapter, open_checkpoint(tiny_base))


def test_untouched_tensors_are_the_bases_own(tiny_base, tiny_adapter):
    base = open_checkpoint(tiny_base)
    checkpoint = open_checkpoint(tiny_adapter, base)
    assert checkpoint.names == base.names
    assert checkpoint.config == base.config
    untouched = "model.layers.0.self_attn.k_proj.weight"
    adapted = "model.layers.0.self_attn.q_proj.weight"
    assert checkpoint.tensor(untouched).data_ptr() == base.tensor(untouched).data_ptr()
    assert checkpoint.shape(adapted) == base.shape(adapted)
    assert len(checkpoint.adapted_names) == 6


def test_adapted_tensors_are_float32_even_on_a_bfloat16_base(tmp_path, tiny_adapter):
    base = open_checkpoint(pico_base(tmp_path / "base", dtype=torch.bfloat16))
    checkpoint = open_checkpoint(tiny_adapter, base)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert checkpoint.tensor(name).dtype == checkpoint.dtype(name) == torch.float32
    assert checkpoint.dtype("model.norm.weight") == torch.bfloat16


def test_fan_in_fan_out_transposes_the_product(tiny_base, tmp_path):
    base = open_checkpoint(tiny_base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.randn(2, 128),
        "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": torch.randn(64, 2),
    }
    save_file(factors, adapter / WEIGHTS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "fan_in_fan_out": True}
    (adapter / CONFIG).write_text(json.dumps(config))
    name = "model.layers.0.mlp.up_proj.weight"
    lora_a, lora_b = factors.values()
    expected = base.tensor(name) + 2.0 * (lora_b @ lora_a).T
    torch.testing.assert_close(open_checkpoint(adapter, base).tensor(name), expected)


@pytest.fixture
def adapter(tiny_adapter, tmp_path):
    return shutil.copytree(tiny_adapter, tmp_path / "adapter")


def configure(folder, **settings):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **settings}))


def test_an_adapter_without_base_is_refused(tiny_adapter):
    with pytest.raises(CheckpointError, match="needs the base it was trained on"):
        open_checkpoint(tiny_adapter)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA; got 'IA3'"),
        ({"use_dora": True}, "use_dora must be unset.*DoRA"),
        ({"lora_bias": True}, "lora_bias must be unset"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens must be unset"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must leave.*got 'pissa'"),
        ({"r": 8}, "rank must be as configured, 8; got factors of rank 4"),
    ],
)
def test_adapters_that_are_not_base_plus_product_are_refused(tiny_base, adapter, settings, words):
    configure(adapter, **settings)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(adapter, open_checkpoint(tiny_base))


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{Q_PROJ}.lora_B.weight": None}, "got only lora_A"),
        ({f"{Q_PROJ}.lora_B.weight": torch.zeros(63, 4)}, r"shape \(64, 64\); got A \(4, 64\)"),
        ({f"{Q_PROJ}.lora_A.weight": torch.zeros(4, 64, 1)}, "must have the base weight's shape"),
        ({"base_model.model.x.lora_A.weight": torch.zeros(4, 2)}, "got only lora_A"),
        (
            {
                "base_model.model.x.lora_A.weight": torch.zeros(4, 2),
                "base_model.model.x.lora_B.weight": torch.zeros(2, 4),
            },
            r"got no 'x\.weight'",
        ),
        ({"base_model.model.lm_head.weight": torch.zeros(512, 64)}, "must replace a tensor"),
        ({f"{Q_PROJ}.lora_magnitude_vector.weight": torch.zeros(64)}, "must replace a tensor"),
        ({"base_model.model.model.norm.weight": torch.zeros(65)}, r"base's shape \(64,\); got"),
    ],
    ids=[
        "no B",
        "B too short",
        "three axes",
        "no B outside",
        "outside",
        "tied head",
        "dora",
        "norm",
    ],
)
def test_factors_that_do_not_fit_the_base_are_refused(tiny_base, adapter, change, words):
    stored = {**load_file(adapter / WEIGHTS), **change}
    kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
    save_file(kept, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(adapter, open_checkpoint(tiny_base))


def test_an_empty_adapter_is_refused(tiny_base, adapter):
    save_file({}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="must change some tensor"):
        open_checkpoint(adapter, open_checkpoint(tiny_base))


def test_a_pickled_adapter_is_refused(tiny_base, adapter):
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickle checkpoint \(adapter_model\.bin\)"):
        open_checkpoint(adapter, open_checkpoint(tiny_base))


def test_a_truncated_adapter_is_refused(tiny_base, adapter):
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(adapter, open_checkpoint(tiny_base))
