"""Architecture families, each as a tiny model: nothing is lost, and logits are the expert's."""

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file

from safemerge.config.recipe import MergeRecipe
from safemerge.merge import ResidentCheckpoints, write_merged

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}


def make_deepseek():
    attention = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4}
    heads = {"qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4}
    routing = {"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1}
    return tf.DeepseekV3ForCausalLM(
        tf.DeepseekV3Config(**SIZES, **attention, **heads, **routing, **EXPERTS)
    )


def make_gemma3_vlm():
    config = tf.Gemma3Config(text_config=HEADS, vision_config=VISION, mm_tokens_per_image=1)
    return tf.Gemma3ForConditionalGeneration(config)


def make_qwen25_vl():
    vision = {"depth": 2, "num_heads": 4, "out_hidden_size": 32, "patch_size": 4}
    vision |= {"hidden_size": 32, "intermediate_size": 64}
    text = {**GROUPED, **MROPE}
    config = tf.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    return tf.Qwen2_5_VLForConditionalGeneration(config)


def make_llama4():
    text = {**HEADS, "intermediate_size_mlp": 64, "num_local_experts": 2}
    return tf.Llama4ForCausalLM(tf.Llama4TextConfig(**text))


FAMILIES = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**GROUPED)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**HEADS)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**HEADS)),
    "qwen3-moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**HEADS, **EXPERTS, num_experts=4)
    ),
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**GROUPED, num_local_experts=4)),
    "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**HEADS)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**HEADS)),
    "gemma3-vlm": make_gemma3_vlm,
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**GROUPED)),
    "gpt-neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
        )
    ),
    "falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(**SIZES)),
    "deepseek-v3": make_deepseek,
    "gpt-oss": lambda: tf.GptOssForCausalLM(
        tf.GptOssConfig(**HEADS, num_local_experts=4, num_experts_per_tok=2)
    ),
    "qwen2.5-vl": make_qwen25_vl,
    "llama4": make_llama4,
}
PROMPT = torch.arange(3, 19)[None]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """The folder of a base and of an expert, which differs from it in every tensor."""
    place = tmp_path_factory.mktemp(request.param)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[request.param]().float().eval()
    model.save_pretrained(place / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    model.save_pretrained(place / "expert")
    return request.param, place, type(model)


def merge(place, method, out, experts=("expert",), **fields):
    refs = [{"name": name, "path": str(place / name)} for name in ("base", *experts)]
    recipe = MergeRecipe.model_validate(
        {"base": refs[0], "experts": refs[1:], "method": method, **fields}
    )
    return write_merged(recipe, ResidentCheckpoints.open(recipe).checkpoints, out)


def stored(folder):
    return {
        name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()
    }


def loaded(folder, model_class):
    model, report = model_class.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=PROMPT, use_cache=False).logits


def test_the_whole_task_vector_gives_the_expert(family, tmp_path):
    _, place, model_class = family
    method = {"name": "task_arithmetic", "weights": {"expert": 1.0}}
    out = merge(place, method, tmp_path / "out")
    expected = stored(place / "expert")
    found = stored(out)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        logits(loaded(out, model_class)),
        logits(loaded(place / "expert", model_class)),
        rtol=1e-5,
        atol=1e-5,
    )


def test_half_of_each_is_the_mean_of_both(family, tmp_path):
    _, place, model_class = family
    method = {"name": "linear", "weights": {"base": 0.5, "expert": 0.5}}
    merged = loaded(merge(place, method, tmp_path / "out"), model_class)
    mean = loaded(place / "base", model_class)
    expert = loaded(place / "expert", model_class).state_dict()
    mean.load_state_dict({name: (t + expert[name]) / 2 for name, t in mean.state_dict().items()})
    torch.testing.assert_close(logits(merged), logits(mean), rtol=1e-5, atol=1e-5)


TARGETS = {
    "gemma3-vlm": r".*language_model.*(q_proj|down_proj)",
    "qwen2.5-vl": r".*language_model.*(q_proj|down_proj)",
    "qwen3-moe": ["q_proj", "gate_proj", "up_proj", "down_proj"],
    "deepseek-v3": ["q_a_proj", "gate_proj", "up_proj", "down_proj"],
    "mixtral": ["q_proj", "w1", "w2", "w3"],
    "phi3": ["qkv_proj", "down_proj"],
    "gpt-neox": ["query_key_value", "dense_4h_to_h"],
    "falcon": ["query_key_value", "dense_4h_to_h"],
    "gpt2": ["c_attn", "c_proj"],
    "gpt-oss": ["q_proj"],
    "llama4": ["q_proj"],
}
PARAMETERS = {
    "gpt-oss": ["experts.gate_up_proj", "experts.down_proj"],
    "llama4": ["experts.gate_up_proj", "experts.down_proj"],
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_adapter_gives_the_model_that_peft_merges(family, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    name, place, model_class = family
    config = LoraConfig(
        r=2,
        init_lora_weights=False,
        target_modules=TARGETS.get(name, ["q_proj", "down_proj"]),
        target_parameters=PARAMETERS.get(name),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(model_class.from_pretrained(place / "base"), config)
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "base").symlink_to(place / "base")
    method = {"name": "task_arithmetic", "weights": {"adapter": 1.0}}
    out = merge(tmp_path, method, tmp_path / "out", experts=("adapter",))
    base = loaded(place / "base", model_class)
    merged = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().eval()
    found = logits(loaded(out, model_class))
    torch.testing.assert_close(found, logits(merged), rtol=1e-5, atol=1e-5)
    assert (found - logits(loaded(place / "base", model_class))).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["gemma3-vlm", "qwen2.5-vl"], indirect=True)
def test_layers_of_a_recipe_are_the_text_decoders_and_the_card_says_so(family, tmp_path):
    name, place, _ = family
    weights = {"early": 1.0, "default": 0.0}
    method = {"name": "task_arithmetic", "weights": {"expert": weights}}
    groups = [{"name": "early", "layers": "0"}]
    out = merge(place, method, tmp_path / "out", layer_groups=groups)
    before, after = stored(place / "base"), stored(out)
    moved = {item for item, tensor in after.items() if not torch.equal(tensor, before[item])}
    assert moved
    assert all("layers.0." in item and "vis" not in item for item in moved)
    tower = "`vision_tower`" if name == "gemma3-vlm" else "`visual`"
    card = (out / "README.md").read_text()
    assert "other towers" in card
    assert tower in card
