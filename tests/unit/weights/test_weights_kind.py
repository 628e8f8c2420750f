import pytest

from safemerge.weights.checkpoint import layer_of
from safemerge.weights.kind import module_kind, tower_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.4.self_attn.q_proj.weight", "attention"),
        ("model.layers.4.self_attn.q_norm.weight", "norms"),
        ("model.layers.4.input_layernorm.weight", "norms"),
        ("model.layers.4.post_attention_layernorm.weight", "norms"),
        ("model.layers.4.mlp.up_proj.weight", "mlp"),
        ("model.layers.4.block_sparse_moe.experts.0.w1.weight", "mlp"),
        ("model.norm.weight", "norms"),
        ("model.embed_tokens.weight", "embeddings"),
        ("lm_head.weight", "embeddings"),
        ("transformer.wte.weight", "embeddings"),
        ("transformer.wpe.weight", "embeddings"),
        ("transformer.h.0.ln_1.weight", "norms"),
        ("transformer.ln_f.weight", "norms"),
        ("transformer.h.0.attn.c_attn.weight", "attention"),
        ("score.weight", None),
    ],
)
def test_the_kind_is_told_from_the_name(name, kind):
    assert module_kind(name) == kind


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", 3),
        ("model.language_model.layers.1.mlp.up_proj.weight", 1),
        ("language_model.model.layers.1.mlp.up_proj.weight", 1),
        ("model.text_model.layers.0.mlp.up_proj.weight", 0),
        ("thinker.model.layers.2.mlp.up_proj.weight", 2),
        ("transformer.h.0.attn.c_attn.weight", 0),
        ("transformer.encoder.layers.4.mlp.dense_h_to_4h.weight", 4),
        ("model.decoder.layers.2.fc1.weight", 2),
        ("model.layers.2.self_attn.vision_expert_query_key_value.weight", 2),
    ],
)
def test_the_text_decoders_layers_are_layers(name, layer):
    assert layer_of(name) == layer
    assert tower_of(name) is None


@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", "vision_tower"),
        ("model.vision_tower.transformer.layers.0.attention.q_proj.weight", "model.vision_tower"),
        ("vision_encoder.transformer.layers.0.attention.wq.weight", "vision_encoder"),
        ("visual.blocks.0.attn.qkv.weight", "visual"),
        ("model.visual.merger.ln_q.weight", "model.visual"),
        ("audio_tower.layers.3.fc1.weight", "audio_tower"),
        ("model.audio_tower.layers.3.fc1.weight", "model.audio_tower"),
        ("talker.model.layers.2.mlp.up_proj.weight", "talker"),
        ("thinker.visual.blocks.1.mlp.up_proj.weight", "thinker.visual"),
        ("img_encoder.layers.0.fc1.weight", "img_encoder"),
        ("multi_modal_projector.linear_1.weight", "multi_modal_projector"),
        ("model.mm_projector.0.weight", "model.mm_projector"),
        ("model.encoder.layers.2.fc1.weight", "model.encoder"),
        ("mtp.layers.0.mlp.up_proj.weight", "mtp"),
    ],
)
def test_layers_of_other_towers_are_none_of_the_decoders(name, tower):
    assert layer_of(name) is None
    assert tower_of(name) == tower
