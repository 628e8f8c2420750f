"""One adapter out of several, against peft 0.21's add_weighted_adapter and its conversions.

peft's ``cat`` puts factors side by side as we do, but pads every module to the largest sum of
ranks and knows one weight an adapter. Conv1D layers store weights the other way round.
"""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from safemerge.config.recipe import MergeRecipe
from safemerge.merge import ResidentCheckpoints, merged_tensors, write_adapter
from safemerge.testing import pico

pytestmark = pytest.mark.reference


def make_recipe(folders, weights):
    refs = [{"name": name, "path": str(folder)} for name, folder in folders.items()]
    method = {"name": "task_arithmetic", "weights": weights}
    return MergeRecipe.model_validate({"base": refs[0], "experts": refs[1:], "method": method})


@pytest.mark.parametrize(
    "weights", [{"a": 0.8, "b": -0.5}, {"a": 1.0, "b": 1.0}, {"a": 0.3, "b": 2.0}], ids=str
)
def test_peft_gives_the_same_weights_and_the_same_factors(tiny_base, tmp_path, weights):
    folders = {
        "base": tiny_base,
        "a": pico.pico_adapter(tiny_base, tmp_path / "a", seed=1, rank=2, lora_alpha=5),
        "b": pico.pico_adapter(tiny_base, tmp_path / "b", seed=2, rank=4, use_rslora=True),
    }
    recipe = make_recipe(folders, weights)
    merged = write_adapter(recipe, ResidentCheckpoints.open(recipe).checkpoints, tmp_path / "out")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), folders["a"], adapter_name="a"
    )
    model.load_adapter(folders["b"], adapter_name="b")
    model.add_weighted_adapter(list(weights), list(weights.values()), "cat", "cat")
    model.set_adapter("cat")
    for name, product in merged.products.items():
        layer = model.base_model.model.get_submodule(name.removesuffix(".weight"))
        theirs = layer.get_delta_weight("cat")
        torch.testing.assert_close(product.up @ product.down, theirs, rtol=1e-5, atol=1e-7)
        assert product.rank == layer.r["cat"] == 6
    expected = model.merge_and_unload().state_dict()
    ours = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "out"
    )
    for name, tensor in ours.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 3])
def test_layers_that_store_weights_the_other_way_round_load_too(tmp_path, rank):
    config = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    folders = {"base": tmp_path / "base"}
    for seed, name in enumerate(("a", "b")):
        base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
        lora = LoraConfig(
            r=2 + seed, target_modules=["c_attn", "mlp.c_fc"][: 2 - seed], fan_in_fan_out=True,
            task_type="CAUSAL_LM",
        )  # fmt: skip
        adapted = get_peft_model(base, lora)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in sorted(adapted.named_parameters()):
                if "lora_" in key:
                    parameter.normal_(0.0, 0.1, generator=generator)
        adapted.save_pretrained(tmp_path / name)
        folders[name] = tmp_path / name
    recipe = make_recipe(folders, {"a": 0.7, "b": 1.1})
    checkpoints = ResidentCheckpoints.open(recipe).checkpoints
    merged = write_adapter(recipe, checkpoints, tmp_path / "out", rank=rank)
    assert (merged.lost > 0.0) is (rank == 3)
    state = PeftModel.from_pretrained(
        GPT2LMHeadModel.from_pretrained(tmp_path / "base"), tmp_path / "out"
    ).merge_and_unload().state_dict()  # fmt: skip
    for name, tensor in merged_tensors(recipe, checkpoints):
        if rank is None:
            torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-6)
        else:
            update = tensor - checkpoints["base"].tensor(name)
            error = (state[name] - tensor).norm()
            assert error <= merged.worst[1] * update.norm() * (1 + 1e-4) + 1e-6
