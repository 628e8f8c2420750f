import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from safemerge.config.stage import LoraSpec
from safemerge.engines.chat import ChatFormat
from safemerge.errors import CheckpointError, CheckpointMismatchError, ConfigError
from safemerge.testing.pico import pico_base
from safemerge.training.ingredient import MARKER
from safemerge.training.lora import attach_lora, load_lora, save_trained
from safemerge.weights.adapter import open_checkpoint
from safemerge.weights.fingerprint import fingerprint

SPEC = LoraSpec(rank=3, alpha=12.0, targets=["q_proj", "down_proj"])
IDS = torch.tensor([[1, 40, 50, 60]])


@pytest.fixture(scope="module")
def half_base(tmp_path_factory):
    return pico_base(tmp_path_factory.mktemp("half") / "base", seed=2, dtype=torch.bfloat16)


def adapted(base, dtype, spec=SPEC):
    """An adapted model whose B is not zero any more, as after training."""
    model = attach_lora(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), spec, where="toy")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def factors(model):
    """A and B by the name of the weight they belong to, as they are now."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            owner, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
            found.setdefault(f"{owner}.weight", {})[rest[0]] = parameter.detach().clone()
    return found


def test_adapters_are_float32_on_a_bfloat16_base(half_base):
    model = attach_lora(
        AutoModelForCausalLM.from_pretrained(half_base, dtype=torch.bfloat16), SPEC, where="toy"
    )
    kinds = {
        (parameter.requires_grad, parameter.dtype, "lora_" in name)
        for name, parameter in model.named_parameters()
    }
    assert kinds == {(True, torch.float32, True), (False, torch.bfloat16, False)}
    assert set(factors(model)) == {
        f"model.layers.{layer}.{module}.weight"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.down_proj")
    }


def test_a_fresh_adapter_changes_no_answer(tiny_base):
    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    with torch.no_grad():
        expected = plain(IDS).logits
        found = attach_lora(plain, SPEC, where="toy")(IDS).logits
    assert torch.equal(found, expected)


def test_adapters_start_at_the_declared_layer(tiny_base):
    spec = SPEC.model_copy(update={"first_layer": 1})
    model = attach_lora(AutoModelForCausalLM.from_pretrained(tiny_base), spec, where="toy")
    assert {name.split(".")[2] for name in factors(model)} == {"1"}


def test_a_target_that_names_no_module_is_refused(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    words = (
        r"toy: lora\.targets must name modules of the model; got 'query'\. Linear modules here: "
        r"down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj\."
    )
    with pytest.raises(ConfigError, match=words):
        attach_lora(model, LoraSpec(targets=["q_proj", "query"]), where="toy")


def test_a_first_layer_that_does_not_exist_is_refused(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    words = r"toy: lora\.first_layer must be below the model's 2 layers; got 2\."
    with pytest.raises(ConfigError, match=words):
        attach_lora(model, LoraSpec(first_layer=2), where="toy")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_dense_export_is_base_plus_scaled_product_rounded_once(half_base, tmp_path, dtype):
    model = adapted(half_base, dtype)
    changed = factors(model)
    save_trained(model, half_base, tmp_path, output="dense")
    base, dense = (load_file(f / "model.safetensors") for f in (half_base, tmp_path))
    assert dense.keys() == base.keys()
    assert len(changed) == 4
    for name, weight in base.items():
        assert dense[name].dtype == torch.bfloat16
        if name not in changed:
            assert torch.equal(dense[name], weight)
            continue
        expected = weight.float() + 12.0 / 3 * changed[name]["B"] @ changed[name]["A"]
        # One rounding: at most half a step of bfloat16 (8 bits) from the float32 sum.
        error = (dense[name].float() - expected).abs()
        assert (error <= expected.abs() * 2**-8 + 1e-7).all()
        assert not torch.equal(dense[name], weight)


def test_a_dense_export_answers_as_the_trained_model(tiny_base, tmp_path):
    model = adapted(tiny_base, torch.float32)
    with torch.no_grad():
        expected = model(IDS).logits
        save_trained(model, tiny_base, tmp_path, output="dense")
        found = AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    chat, own = ChatFormat(tiny_base), ChatFormat(tmp_path)
    assert own.prompt_ids("Hi there") == chat.prompt_ids("Hi there")
    assert own.tokenizer.chat_template == chat.tokenizer.chat_template


def test_tensors_without_an_adapter_are_exported_as_the_bases_own(tiny_base, tmp_path):
    model = adapted(tiny_base, torch.bfloat16)
    changed = factors(model)
    save_trained(model, tiny_base, tmp_path, output="dense")
    base, dense = (load_file(f / "model.safetensors") for f in (tiny_base, tmp_path))
    assert all(torch.equal(dense[n], base[n]) for n in base.keys() - changed.keys())


def test_an_adapter_export_opens_with_peft_and_with_a_merge(half_base, tmp_path):
    model = adapted(half_base, torch.float32)
    changed = factors(model)
    with torch.no_grad():
        expected = model(IDS).logits
    save_trained(model, half_base, tmp_path, output="adapter")
    plain = AutoModelForCausalLM.from_pretrained(half_base, dtype=torch.float32)
    opened = PeftModel.from_pretrained(plain, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "model.safetensors").exists()

    merged = open_checkpoint(tmp_path, open_checkpoint(half_base))
    base = load_file(half_base / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    expected = base[name].float() + 4.0 * changed[name]["B"] @ changed[name]["A"]
    torch.testing.assert_close(merged.tensor(name).float(), expected, rtol=2**-8, atol=1e-6)


# --- an adapter that exists -------------------------------------------------------------


@pytest.fixture
def copied(tiny_adapter, tmp_path):
    """A copy of the pico adapter, whose marker names a base."""

    def copied(base_fingerprint=None):
        folder = tmp_path / "adapter"
        shutil.copytree(tiny_adapter, folder, dirs_exist_ok=True)
        if base_fingerprint is not None:
            told = json.dumps({"base_fingerprint": base_fingerprint})
            (folder / MARKER).write_text(told, encoding="utf-8")
        return folder

    return copied


def loaded(base, folder):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return load_lora(model, folder, base=base, where="toy")


def test_training_goes_on_from_an_adapters_own_weights(tiny_base, copied):
    folder = copied(fingerprint(tiny_base))
    stored = load_file(folder / "adapter_model.safetensors")
    trainable = {n: p for n, p in loaded(tiny_base, folder).named_parameters() if p.requires_grad}
    assert len(trainable) == len(stored) == 12
    for name, parameter in trainable.items():
        assert parameter.dtype == torch.float32
        kept = stored[name.replace(".default", "")]
        torch.testing.assert_close(parameter.detach(), kept, rtol=0, atol=4e-3)


def test_an_adapter_for_another_base_is_refused(tiny_base, copied):
    words = r"toy: adapter must have been trained on this base \([0-9a-f]{16}\); got .* on 1{16}\."
    with pytest.raises(CheckpointMismatchError, match=words):
        loaded(tiny_base, copied("1" * 16))


def test_a_base_named_by_its_path_from_the_adapter_is_compared(tiny_base, copied, tmp_path):
    pico_base(tmp_path / "other", seed=9)
    file = copied() / "adapter_config.json"
    config = {**json.loads(file.read_text()), "base_model_name_or_path": "../other"}
    file.write_text(json.dumps(config))
    (file.parent / MARKER).unlink(missing_ok=True)
    with pytest.raises(CheckpointMismatchError, match="must have been trained on this base"):
        loaded(tiny_base, file.parent)


def test_an_adapter_that_does_not_fit_the_base_is_refused(tiny_base, copied):
    from safetensors.torch import save_file

    folder = copied()
    path = folder / "adapter_model.safetensors"
    wider = {
        name: torch.cat([tensor, tensor], dim=1) if "lora_A" in name else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(wider, path)
    with pytest.raises(CheckpointError, match="adapter"):
        loaded(tiny_base, folder)


def test_a_folder_without_an_adapter_is_refused(tiny_base):
    with pytest.raises(
        ConfigError, match=r"toy: adapter must be the folder of a LoRA adapter; got"
    ):
        loaded(tiny_base, tiny_base)


def test_an_adapter_with_dropout_is_refused(tiny_base, copied):
    folder = copied()
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), "lora_dropout": 0.1}
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"toy: adapter must have no dropout; got 0\.1 in"):
        loaded(tiny_base, folder)
