"""Configs as published on the hub, and as transformers saves them again today."""

import copy
import json

import pytest

from safemerge.errors import CheckpointError
from safemerge.weights.settings import (
    SettingDifference,
    read_config,
    setting_differences,
    ties_embeddings,
    unread_reason,
)

DECODER = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "vocab_size": 512,
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
PUBLISHED = {
    "llama 1": {"model_type": "llama", "max_sequence_length": 2048, "pad_token_id": -1},
    "llama 2": {"model_type": "llama", "num_key_value_heads": 4, "rope_scaling": None},
    "llama 3.1": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rope_scaling": {**LLAMA3_ROPE, "rope_type": "llama3"},
        "rope_theta": 500000.0,
    },
    "llama 3.1, both spellings": {
        "model_type": "llama",
        "num_key_value_heads": 2,
        "max_position_embeddings": 131072,
        "rope_scaling": {**LLAMA3_ROPE, "rope_type": "llama3", "type": "llama3"},
        "rope_theta": 500000,
    },
    "mistral": {
        "model_type": "mistral",
        "num_key_value_heads": 2,
        "rope_theta": 1000000.0,
        "sliding_window": None,
    },
    "qwen2.5": {
        "model_type": "qwen2",
        "num_key_value_heads": 2,
        "max_window_layers": 4,
        "rope_theta": 1000000.0,
        "sliding_window": 131072,
        "use_mrope": False,
        "use_sliding_window": False,
    },
    "qwen2-moe": {
        "model_type": "qwen2_moe",
        "decoder_sparse_step": 1,
        "max_window_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "output_router_logits": False,
        "sliding_window": 32768,
        "use_sliding_window": False,
    },
    "gemma 1": {"model_type": "gemma", "head_dim": 16, "hidden_act": "gelu"},
    "gemma 2": {
        "model_type": "gemma2",
        "cache_implementation": "hybrid",
        "head_dim": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma 3": {
        "model_type": "gemma3",
        "mm_tokens_per_image": 4,
        "text_config": {
            "model_type": "gemma3_text",
            "num_hidden_layers": 6,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 16,
        },
        "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 2},
    },
    "phi 3": {
        "model_type": "phi3",
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "original_max_position_embeddings": 4096,
        "rope_scaling": {
            "long_factor": [1.5] * 8,
            "short_factor": [1.0] * 8,
            "type": "longrope",
        },
        "sliding_window": 2047,
    },
    "gpt-2": {
        "model_type": "gpt2",
        "n_ctx": 64,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "task_specific_params": {"text-generation": {"do_sample": True}},
    },
    "gpt-neox": {"model_type": "gpt_neox", "rotary_emb_base": 10000, "rotary_pct": 0.25},
    "falcon": {"model_type": "falcon", "alibi": False, "multi_query": True},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "sliding_window": None},
}


def published(name):
    shared = {} if name in ("gpt-2", "gemma 3") else DECODER
    return {"torch_dtype": "float16", "use_cache": True, **shared, **PUBLISHED[name]}


def saved_again(config):
    return json.loads(read_config(config).to_json_string(use_diff=True))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_means_what_its_saved_copy_means(name):
    config = published(name)
    before = copy.deepcopy(config)
    again = saved_again(config)
    assert set(again) != set(config)
    assert setting_differences(config, again) == []
    assert setting_differences(again, config) == []
    assert config == before


def told(base, other):
    found = setting_differences(base, other)
    return {item.key: (item.base, item.other) for item in found}, [i.structural for i in found]


@pytest.mark.parametrize(
    ("name", "changes", "differences"),
    [
        (
            "llama 2",
            {"rope_theta": 500000.0},
            {"rope_parameters.rope_theta": (10000.0, 500000.0)},
        ),
        ("llama 2", {"rms_norm_eps": 1e-5}, {"rms_norm_eps": (1e-6, 1e-5)}),
        ("llama 2", {"hidden_act": "gelu"}, {"hidden_act": ("silu", "gelu")}),
        ("mistral", {"sliding_window": 4096}, {"sliding_window": (None, 4096)}),
        ("qwen2-moe", {"num_experts_per_tok": 4}, {"num_experts_per_tok": (2, 4)}),
        ("gemma 2", {"final_logit_softcapping": None}, {"final_logit_softcapping": (30.0, None)}),
        ("falcon", {"alibi": True}, {"alibi": (False, True)}),
        (
            "phi 3",
            {"rope_scaling": {**PUBLISHED["phi 3"]["rope_scaling"], "long_factor": [2.0] * 8}},
            {"rope_parameters.long_factor[0]": (1.5, 2.0)},
        ),
    ],
)
def test_settings_that_change_the_function_alone_are_named_with_both_values(
    name, changes, differences
):
    config = published(name)
    found, structural = told(config, saved_again({**config, **changes}))
    assert found == differences
    assert not any(structural)


def test_a_window_that_some_layers_look_through_is_in_use():
    config = published("qwen2.5")
    used = {**config, "use_sliding_window": True, "max_window_layers": 3}
    found, structural = told(config, used)
    assert found == {
        "layer_types[3]": ("full_attention", "sliding_attention"),
        "sliding_window": (None, 131072),
    }
    assert not any(structural)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama 2", "num_attention_heads", 8),
        ("llama 2", "num_key_value_heads", 2),
        ("llama 2", "head_dim", 32),
        ("llama 2", "vocab_size", 500),
        ("qwen2-moe", "num_experts", 8),
        ("gpt-2", "n_head", 2),
    ],
)
def test_sizes_and_numbers_of_parts_are_structural(name, key, value):
    config = published(name)
    found = {item.key: item for item in setting_differences(config, {**config, key: value})}
    assert found[key].other == value
    assert found[key].structural


def test_a_nested_difference_is_named_by_its_place():
    config = published("gemma 3")
    other = copy.deepcopy(config)
    other["vision_config"]["patch_size"] = 7
    other["text_config"]["rope_scaling"]["factor"] = 4.0
    found, structural = told(config, other)
    rope = "text_config.rope_parameters.full_attention.factor"
    assert found == {rope: (8.0, 4.0), "vision_config.patch_size": (16, 7)}
    assert structural == [False, True]


def test_another_model_type_is_the_one_difference():
    (found,) = setting_differences(published("llama 2"), published("mistral"))
    assert str(found) == "model_type base 'llama', expert 'mistral'"
    assert found.structural


@pytest.mark.parametrize(
    "changes",
    [
        {"torch_dtype": "bfloat16"},
        {"dtype": "float32", "transformers_version": "5.19.0"},
        {"use_cache": False, "initializer_range": 0.1},
        {"attention_dropout": 0.1, "pretraining_tp": 2},
        {"eos_token_id": [1, 2], "pad_token_id": 0},
        {"_name_or_path": "elsewhere", "unsloth_version": "2025.1"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ],
)
def test_what_changes_nothing_of_what_weights_compute_does_not_matter(changes):
    config = published("llama 2")
    assert setting_differences(config, {**config, **changes}) == []


def test_keys_that_the_class_does_not_know_count_where_both_files_have_them():
    config = published("llama 2")
    assert setting_differences(config, {**config, "is_llama_config": True}) == []
    first, second = {**config, "my_scale": 1.0}, {**config, "my_scale": 2.0}
    assert told(first, second)[0] == {"my_scale": (1.0, 2.0)}


UNKNOWN = {"model_type": "my_model", **DECODER}


def test_an_unknown_model_is_compared_by_its_keys():
    assert "knows no model_type 'my_model'" in unread_reason(UNKNOWN)
    other = {**UNKNOWN, "hidden_size": 128, "norm_eps": 1e-5}
    found, structural = told(UNKNOWN, other)
    assert found["hidden_size"] == (64, 128)
    assert found["norm_eps"] == (None, 1e-5)
    assert any(structural)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4, "head_dim": 16},
        {"hidden_act": "swish"},
        {"sliding_window": 64, "use_sliding_window": False},
        {"num_layers_extra": None, "torch_dtype": "float16"},
    ],
)
def test_usual_spellings_of_one_thing_are_equal_for_an_unknown_model_too(changes):
    assert setting_differences(UNKNOWN, {**UNKNOWN, **changes}) == []


def test_old_and_new_spellings_of_rotary_embeddings_are_equal_for_an_unknown_model_too():
    old = {**UNKNOWN, "rope_theta": 5e5, "rope_scaling": {**LLAMA3_ROPE, "type": "llama3"}}
    rope = {**LLAMA3_ROPE, "rope_type": "llama3", "rope_theta": 500000}
    assert setting_differences(old, {**UNKNOWN, "rope_parameters": rope}) == []


def test_a_config_that_transformers_refuses_has_a_reason():
    config = {**published("llama 2"), "num_attention_heads": 5}
    assert "not a multiple" in unread_reason(config)
    with pytest.raises(CheckpointError, match="transformers refuses the config"):
        read_config(config)
    assert setting_differences(published("llama 2"), config)[0].structural


@pytest.mark.parametrize(("name", "tied"), [("llama 2", False), ("gemma 1", True)])
def test_what_a_silent_config_ties_is_the_classes_choice(name, tied):
    assert ties_embeddings(published(name)) is tied


def test_a_config_that_no_class_reads_ties_nothing():
    assert not ties_embeddings(UNKNOWN)


def test_long_values_are_shortened():
    difference = SettingDifference("key", "x" * 100, None)
    assert str(difference).startswith("key base 'xxx")
    assert len(str(difference)) < 100
