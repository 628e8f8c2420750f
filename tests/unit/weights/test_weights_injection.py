import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

from safemerge.weights.injection import ByPeft, Copy, ExpertProducts, Product, Rows, inject

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}


def make_model():
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_attention_heads=4, num_local_experts=4))


def test_an_adapter_is_put_where_peft_puts_it(tmp_path):
    config = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.down_proj"],
        modules_to_save=["lm_head"],
    )
    adapted = get_peft_model(make_model(), config)
    adapted.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    with torch.device("meta"):
        bare = make_model()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    found = inject(tmp_path, bare, tensors, advice="Help.")
    layer = "model.layers.0"
    kinds = {name: [type(u) for u in updates] for name, updates in found.updates.items()}
    assert kinds == {
        f"{layer}.self_attn.q_proj.weight": [Product],
        f"{layer}.mlp.experts.down_proj": [ExpertProducts],
        "lm_head.weight": [Copy],
    }
    assert found.updates[f"{layer}.self_attn.q_proj.weight"][0].scale == 3.0


def test_updates_add_replace_and_leave_their_argument_alone():
    weight = torch.ones(2, 3, dtype=torch.float64).float()
    up, down = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, 2.0]])
    added = Product(up, down, 0.5).apply(weight)
    torch.testing.assert_close(added, torch.tensor([[1.5, 1.0, 2.0], [2.0, 1.0, 3.0]]))
    stacked = ExpertProducts(up[None], down[None], 0.5)
    torch.testing.assert_close(stacked.apply(weight[None])[0], added)
    torch.testing.assert_close(weight[None] + stacked.of_expert(0), added[None])
    rows = Rows(torch.tensor([1]), torch.tensor([[7.0, 8.0, 9.0]])).apply(weight)
    torch.testing.assert_close(rows, torch.tensor([[1.0, 1.0, 1.0], [7.0, 8.0, 9.0]]))
    assert torch.equal(weight, torch.ones(2, 3))


def test_pefts_own_layer_merges_what_has_no_factors_of_its_own():
    from peft.tuners.lora import Linear

    with torch.device("meta"):
        layer = Linear(
            torch.nn.Linear(3, 2, bias=False),
            "default",
            LoraConfig(use_dora=True, r=1),
            r=1,
            lora_alpha=1,
        )
    tensors = {
        "lora_A.default.weight": torch.tensor([[3.0, 0.0, 0.0]]),
        "lora_B.default.weight": torch.tensor([[1.0], [0.0]]),
        "lora_magnitude_vector.default.weight": torch.tensor([10.0, 2.0]),
    }
    weight = torch.tensor([[0.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    merged = ByPeft(layer, "weight", tensors).apply(weight)
    # Rows (3, 4, 0) and (0, 0, 1) have norms 5 and 1; the magnitudes are 10 and 2.
    torch.testing.assert_close(merged, torch.tensor([[6.0, 8.0, 0.0], [0.0, 0.0, 2.0]]))
