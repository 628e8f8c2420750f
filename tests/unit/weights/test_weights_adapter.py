import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from safemerge.errors import CheckpointError
from safemerge.testing.pico import change_config, pico_adapter, pico_base
from safemerge.weights import open_checkpoint

# What peft says while an adapter is made: copies of embeddings, kinds of modules, and such.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def assert_dense_as_peft_merges_it(base, adapter):
    checkpoint = open_checkpoint(adapter, open_checkpoint(base))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged = model.merge_and_unload()
    state = merged.state_dict()
    assert checkpoint.tied_embeddings == merged.config.tie_word_embeddings
    for name in checkpoint.names:
        torch.testing.assert_close(checkpoint.tensor(name), state[name], rtol=1e-6, atol=1e-7)
        assert checkpoint.shape(name) == tuple(state[name].shape)
        assert checkpoint.dtype(name) == checkpoint.tensor(name).dtype
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


def test_factors_of_an_untied_embedding_are_transposed(tmp_path):
    base = pico_base(tmp_path / "base", tied=False)
    lora = {"target_modules": ["embed_tokens", "q_proj"]}
    adapter = pico_adapter(base, tmp_path / "adapter", seed=5, **lora)
    checkpoint = assert_dense_as_peft_merges_it(base, adapter)
    assert "model.embed_tokens.weight" in checkpoint.adapted_names


@pytest.mark.parametrize(
    ("lora", "tied"),
    [
        ({"modules_to_save": ["embed_tokens"]}, False),
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
        ({"target_modules": ["q_proj", "embed_tokens"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
        ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, True),
        ({"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}, True),
        ({"trainable_token_indices": [3, 5]}, True),
    ],
    ids=str,
)
def test_a_tied_embedding_is_what_peft_merges_it_to(tiny_base, tmp_path, lora, tied):
    adapter = pico_adapter(tiny_base, tmp_path, seed=5, **lora)
    checkpoint = assert_dense_as_peft_merges_it(tiny_base, adapter)
    assert checkpoint.tied_embeddings == tied
    assert ("lm_head.weight" in checkpoint) == (not tied)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
        {"layers_to_transform": [1], "exclude_modules": ["v_proj"]},
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.up_proj.weight"]},
    ],
    ids=str,
)
def test_what_is_no_plain_product_is_merged_by_pefts_own_layers(tiny_base, tmp_path, lora):
    assert_dense_as_peft_merges_it(tiny_base, pico_adapter(tiny_base, tmp_path, seed=5, **lora))


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


@pytest.fixture(scope="module")
def conv1d_base(tmp_path_factory):
    """A GPT-2, whose layers but the head store (inputs, outputs); its attention is square."""
    folder = tmp_path_factory.mktemp("gpt2")
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=64, tie_word_embeddings=False, **sizes)).save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize("written", [False, True])
def test_a_modules_own_kind_says_whether_its_product_is_transposed(conv1d_base, tmp_path, written):
    lora = {"target_modules": r".*attn\.c_proj|lm_head"}
    adapter = pico_adapter(conv1d_base, tmp_path, seed=5, **lora)
    configure(adapter, fan_in_fan_out=written)
    checkpoint = assert_dense_as_peft_merges_it(conv1d_base, adapter)
    assert len(checkpoint.adapted_names) == 2


def test_biases_of_factors_are_added_to_the_bases_biases(conv1d_base, tmp_path):
    lora = {"target_modules": ["c_attn", "c_fc"], "lora_bias": True}
    adapter = pico_adapter(conv1d_base, tmp_path, seed=5, **lora)
    checkpoint = assert_dense_as_peft_merges_it(conv1d_base, adapter)
    assert "transformer.h.0.attn.c_attn.bias" in checkpoint.adapted_names


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
        ({"peft_type": "LOHA"}, "peft_type must be LORA; got 'LOHA'"),
        ({"use_dora": True}, r"all of its factors must be stored; got no 'lora_magnitude_vector"),
        ({"lora_bias": True}, "all of its factors must be stored"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens must be unset"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must leave.*got 'pissa'"),
        ({"target_modules": ["gone"]}, "peft must be able to put the adapter into the base"),
        ({"rank_pattern": None}, "peft must be able to put the adapter into the base"),
        ({"target_modules": ["q_proj"]}, "must belong to a module that adapter_config.json names"),
        ({"r": 8}, r"shape that the base and adapter_config.json ask for, \(8, \d+\); got \(4"),
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
        ({f"{Q_PROJ}.lora_B.weight": None}, "all of its factors must be stored; got no 'lora_B"),
        ({f"{Q_PROJ}.lora_B.weight": torch.zeros(63, 4)}, r"ask for, \(64, 4\); got \(63, 4\)"),
        ({f"{Q_PROJ}.lora_A.weight": torch.zeros(4, 64, 1)}, r"ask for, \(4, 64\); got"),
        ({"base_model.model.x.lora_A.weight": torch.zeros(4, 2)}, "tensors without a place"),
        ({f"{Q_PROJ}.lora_magnitude_vector.weight": torch.zeros(64)}, "without a place"),
        ({"base_model.model.model.norm.weight": torch.zeros(65)}, r"ask for, \(64,\); got"),
    ],
    ids=["no B", "B too short", "three axes", "outside", "dora", "norm"],
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


def test_a_base_that_transformers_does_not_know_takes_no_adapter(adapter, tmp_path):
    base = pico_base(tmp_path / "base")
    change_config(base, model_type="unheard_of", architectures=["UnheardOf"])
    with pytest.raises(CheckpointError, match=r"an architecture that transformers .* knows"):
        open_checkpoint(adapter, open_checkpoint(base))


def test_tensors_of_experts_are_changed_one_at_a_time(tmp_path):
    """Only the tensor that is asked for is read of the base."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = MixtralConfig(vocab_size=64, num_attention_heads=4, num_local_experts=4, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    lora = {"target_modules": ["w1", "w2", "w3"]}
    adapter = pico_adapter(tmp_path / "base", tmp_path / "adapter", seed=5, **lora)
    base = open_checkpoint(tmp_path / "base")
    read = []
    base_tensor, base.tensor = base.tensor, lambda name: read.append(name) or base_tensor(name)
    checkpoint = open_checkpoint(adapter, base)
    name = "model.layers.0.block_sparse_moe.experts.2.w3.weight"
    assert name in checkpoint.adapted_names
    assert checkpoint.tensor(name).shape == base.shape(name)
    assert read == [name]


def test_a_base_of_other_shapes_than_its_config_says_is_refused(adapter, tmp_path):
    base = pico_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    packed = {**tensors, name: torch.zeros(64 * 64 // 2, 1, dtype=torch.uint8)}
    save_file(packed, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"'{name}': must have the shape .*\(64, 64\)"):
        open_checkpoint(adapter, open_checkpoint(base))


def test_an_adapters_config_names_no_module_that_is_imported(adapter, tiny_base):
    plain = open_checkpoint(adapter, open_checkpoint(tiny_base))
    configure(adapter, megatron_config={}, megatron_core="no_module_of_this_name")
    again = open_checkpoint(adapter, open_checkpoint(tiny_base))
    assert all(torch.equal(plain.tensor(name), again.tensor(name)) for name in plain.names)
