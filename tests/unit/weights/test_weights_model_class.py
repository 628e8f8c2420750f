import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.testing.pico import change_config
from safemerge.weights import check_agreement, open_checkpoint
from safemerge.weights.header import TensorEntry
from safemerge.weights.model_class import unread_tensors

WEIGHT = TensorEntry(torch.float32, (4, 4), 64)
BIAS = TensorEntry(torch.float32, (4,), 16)
MASK = TensorEntry(torch.bool, (1, 1, 8, 8), 64)
SCALAR = TensorEntry(torch.float32, (), 4)
NEOX = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
DEEPSEEK = {
    "model_type": "deepseek_v3",
    "architectures": ["DeepseekV3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 64,
}
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def with_tensor(folder, out, name, tensor):
    copied = shutil.copytree(folder, out)
    tensors = {**load_file(copied / "model.safetensors"), name: tensor}
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    return copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_a_dead_buffer_of_the_base_or_of_an_expert_is_no_part_of_the_model(
    dtype, tiny_base, tiny_expert, tmp_path
):
    buffer = torch.ones(16, dtype=dtype)
    base = with_tensor(tiny_base, tmp_path / "base", INV_FREQ, buffer)
    expert = with_tensor(tiny_expert, tmp_path / "expert", INV_FREQ, buffer)
    opened = open_checkpoint(base)
    assert opened.left_out == (INV_FREQ,)
    assert INV_FREQ not in opened.names
    check_agreement(opened, {"e": open_checkpoint(tiny_expert)})
    check_agreement(open_checkpoint(tiny_base), {"e": open_checkpoint(expert)})
    check_agreement(opened, {"e": open_checkpoint(expert)})


def test_masks_are_told_from_biases_of_projections():
    entries = {
        "gpt_neox.layers.0.attention.bias": MASK,
        "gpt_neox.layers.0.attention.masked_bias": SCALAR,
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": BIAS,
        "gpt_neox.layers.0.attention.query_key_value.bias": BIAS,
        "gpt_neox.layers.0.attention.query_key_value.weight": WEIGHT,
    }
    assert unread_tensors(NEOX, entries) == {
        "gpt_neox.layers.0.attention.bias",
        "gpt_neox.layers.0.attention.masked_bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    }


def test_the_usual_buffers_of_an_unknown_model_are_known_by_their_names():
    entries = {INV_FREQ: BIAS, "model.positions": MASK, "model.norm.weight": WEIGHT}
    assert unread_tensors({"model_type": "my_model"}, entries) == {INV_FREQ}


def test_layers_that_the_class_ignores_are_unread_and_others_are_not():
    extra = "model.layers.61.mlp.down_proj.weight"
    strange = "model.layers.7.mlp.down_proj.weight"
    experts = "model.layers.1.mlp.gate.e_score_correction_bias"
    entries = {extra: WEIGHT, strange: WEIGHT, experts: BIAS}
    assert unread_tensors(DEEPSEEK, entries, beyond=[extra, strange]) == {extra}


def test_weights_beyond_the_layers_that_are_counted_are_asked_about(tiny_base, tmp_path):
    name = "model.layers.5.mlp.up_proj.weight"
    folder = with_tensor(tiny_base, tmp_path / "base", name, torch.ones(128, 64))
    assert name in open_checkpoint(folder).names


def test_a_model_that_cannot_be_built_ignores_nothing(tiny_base, tmp_path):
    folder = with_tensor(tiny_base, tmp_path / "base", "model.scale", torch.ones(2))
    change_config(folder, num_attention_heads=3)
    assert open_checkpoint(folder).left_out == ()
