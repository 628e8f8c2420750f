import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from safemerge.errors import CheckpointError
from safemerge.testing.pico import change_config, pico_adapter
from safemerge.weights import open_checkpoint
from safemerge.weights.quantized import declared_quantization

PROJ = "model.layers.0.mlp.up_proj"


def quantized(tiny_base, folder, remove, add):
    shutil.copytree(tiny_base, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in remove:
        del tensors[name]
    save_file({**tensors, **add}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


BNB_4BIT = {
    f"{PROJ}.weight": torch.zeros(4096, 1, dtype=torch.uint8),
    f"{PROJ}.weight.absmax": torch.zeros(8),
    f"{PROJ}.weight.quant_map": torch.zeros(16),
}
BNB_8BIT = {
    f"{PROJ}.weight": torch.zeros(128, 64, dtype=torch.int8),
    f"{PROJ}.SCB": torch.zeros(128),
}
GPTQ = {
    f"{PROJ}.qweight": torch.zeros(8, 128, dtype=torch.int32),
    f"{PROJ}.qzeros": torch.zeros(1, 16, dtype=torch.int32),
    f"{PROJ}.scales": torch.zeros(1, 128, dtype=torch.float16),
}
FP8 = {
    f"{PROJ}.weight": torch.zeros(128, 64, dtype=torch.float8_e4m3fn),
    f"{PROJ}.weight_scale_inv": torch.ones(1, 1),
}
PACKED = {
    f"{PROJ}.weight_packed": torch.zeros(128, 8, dtype=torch.int32),
    f"{PROJ}.weight_scale": torch.ones(128, 1),
}
MXFP4 = {
    "model.layers.0.mlp.experts.gate_up_proj_blocks": torch.zeros(4, 8, dtype=torch.uint8),
    "model.layers.0.mlp.experts.gate_up_proj_scales": torch.zeros(4, 2, dtype=torch.uint8),
}


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("bitsandbytes 4-bit", BNB_4BIT),
        ("bitsandbytes 8-bit", BNB_8BIT),
        ("GPTQ or AWQ", GPTQ),
        ("FP8", FP8),
        ("compressed-tensors", PACKED),
        ("MXFP4", MXFP4),
    ],
)
def test_quantised_weights_are_named_as_such_by_their_tensors(kind, tensors, tiny_base, tmp_path):
    folder = quantized(tiny_base, tmp_path / "q", [f"{PROJ}.weight"], tensors)
    with pytest.raises(CheckpointError, match=rf"got a quantised checkpoint \({kind}: .*unquant"):
        open_checkpoint(folder)


def test_the_config_names_the_method_where_it_does(tiny_base, tmp_path):
    folder = quantized(tiny_base, tmp_path / "q", [f"{PROJ}.weight"], GPTQ)
    change_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"quantised checkpoint \(awq, 4-bit: "):
        open_checkpoint(folder)


def test_the_quantised_base_of_an_adapter_is_said_to_be_quantised(tiny_base, tmp_path):
    adapter = pico_adapter(tiny_base, tmp_path / "adapter", seed=1)
    folder = quantized(tiny_base, tmp_path / "q", [f"{PROJ}.weight"], BNB_4BIT)
    with pytest.raises(CheckpointError, match="also as the base of an adapter trained on it"):
        open_checkpoint(adapter, open_checkpoint(folder))


def test_dense_weights_beside_a_quantization_config_are_dense(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "dense")
    declared = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    change_config(folder, quantization_config=declared)
    assert open_checkpoint(folder).names == open_checkpoint(tiny_base).names
    config = json.loads((folder / "config.json").read_text())
    assert declared_quantization(config) == "bitsandbytes, 4-bit"


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"text_config": {}}])
def test_a_config_may_declare_nothing(config):
    assert declared_quantization(config) is None
