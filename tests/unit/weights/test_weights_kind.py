import pytest

from safemerge.weights.kind import module_kind


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
