import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from safemerge.config.source import TrainingData
from safemerge.config.training import FinetuneSpec
from safemerge.robustness.attack import run_attack

DATA = {
    "source": {"kind": "generator", "name": "reviews", "split": "train", "count": 32},
    "response": "{label}",
}
CURVE = TrainingData.model_validate(
    {
        "source": {"kind": "generator", "name": "reviews", "split": "report", "count": 4},
        "response": "negative",
    }
)
LORA = {"lora": {"rank": 2, "targets": ["q_proj"]}, "output": "adapter"}


def attack(base, **changes):
    return FinetuneSpec.model_validate(
        {
            "name": "attack",
            "base": {"name": "hardened", "path": str(base)},
            "data": [DATA],
            "steps": 5,
            "batch_size": 4,
            "max_tokens": 128,
            "dtype": "float32",
            **changes,
        }
    )


def test_an_attack_on_a_fresh_adapter_leaves_an_adapter_and_its_losses(tiny_base, tmp_path):
    trace = run_attack(attack(tiny_base, **LORA), tmp_path / "out", curve=CURVE, curve_every=2)
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert len(trace.losses) == 5
    assert [step for step, _ in trace.curve] == [0, 2, 4, 5]
    assert len({loss for _, loss in trace.curve}) == 4


def test_the_first_point_of_the_curve_is_the_hardened_models_own_loss(tiny_base, tmp_path):
    one = run_attack(attack(tiny_base, **LORA), tmp_path / "a", curve=CURVE)
    other = run_attack(attack(tiny_base, **LORA, seed=5), tmp_path / "b", curve=CURVE)
    # A new adapter is zero, whatever its seed.
    assert one.curve[0] == pytest.approx(other.curve[0])
    assert one.losses != other.losses


def test_the_same_attack_gives_the_same_weights(tiny_base, tmp_path):
    for name in ("a", "b"):
        run_attack(attack(tiny_base, **LORA), tmp_path / name)
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("a", "b"))
    assert all(one[name].equal(other[name]) for name in one)


def test_an_attack_on_the_hardened_adapter_goes_on_with_it(tiny_base, tmp_path):
    run_attack(attack(tiny_base, **LORA), tmp_path / "hardened")
    spec = attack(tiny_base, adapter=str(tmp_path / "hardened"), output="adapter", steps=1)
    run_attack(spec.model_copy(update={"learning_rate": 1e-12}), tmp_path / "out")
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("hardened", "out")
    )
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert any(other[name].abs().max() > 0 for name in other if "lora_B" in name)


def test_an_attack_on_all_weights_moves_them_and_keeps_the_bases_type(tiny_base, tmp_path):
    run_attack(attack(tiny_base, parameters="full"), tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    attacked = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert attacked.dtype == base.dtype
    moved = {
        name
        for (name, one), (_, other) in zip(
            base.named_parameters(), attacked.named_parameters(), strict=True
        )
        if not one.equal(other)
    }
    assert {name for name, _ in base.named_parameters()} == moved
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("how", [LORA, {"parameters": "full"}])
def test_the_weights_kept_along_the_way_are_those_of_a_shorter_attack(tiny_base, tmp_path, how):
    constant = {"schedule": "constant", **how}
    out = tmp_path / "out"
    # Rows are drawn for eight steps at a time.
    trace = run_attack(attack(tiny_base, **constant, steps=9), out, keep_every=4)
    assert trace.kept == ((4, tmp_path / "out-step4"), (8, tmp_path / "out-step8"))
    run_attack(attack(tiny_base, **constant, steps=8), tmp_path / "shorter")
    (name,) = [path.name for path in out.glob("*.safetensors")]
    kept, shorter, last = (
        load_file(tmp_path / folder / name) for folder in ("out-step8", "shorter", "out")
    )
    assert all(kept[key].equal(shorter[key]) for key in shorter)
    assert any(not kept[key].equal(last[key]) for key in last)
