import shutil

import pytest

from safemerge.testing.pico import change_config
from safemerge.weights import open_checkpoint
from safemerge.weights.notice import notices


@pytest.fixture
def base(tiny_base):
    return open_checkpoint(tiny_base)


@pytest.fixture
def folder(tiny_expert, tmp_path):
    return shutil.copytree(tiny_expert, tmp_path / "expert")


def test_nothing_is_said_of_models_that_mean_the_same(base, tiny_experts, tiny_adapter):
    experts = {name: open_checkpoint(path) for name, path in tiny_experts.items()}
    assert notices(base, {**experts, "lora": open_checkpoint(tiny_adapter, base)}) == ()


def test_settings_that_differ_are_said_with_both_values(base, folder):
    rope = {"rope_type": "default", "rope_theta": 2e7}
    change_config(folder, rope_parameters=rope, rms_norm_eps=1e-2)
    (said,) = notices(base, {"gsm8k": open_checkpoint(folder)})
    assert said.startswith("expert 'gsm8k' has settings under which equal weights")
    assert "rms_norm_eps base 1e-06, expert 0.01" in said
    assert "rope_parameters.rope_theta base 10000.0, expert 20000000.0" in said
    assert said.endswith("The base's are kept.")


def test_an_unknown_model_is_said_once(tiny_base, folder, tmp_path):
    other = shutil.copytree(tiny_base, tmp_path / "base")
    for changed in (other, folder):
        change_config(changed, model_type="my_model")
    (said,) = notices(open_checkpoint(other), {"e": open_checkpoint(folder)})
    assert "knows no model_type 'my_model'" in said
    assert "compared key by key" in said


def test_a_leftover_quantization_config_is_said(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "base")
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    (said,) = notices(open_checkpoint(folder), {})
    assert "quantization_config (gptq, 4-bit) is left out of the result" in said
