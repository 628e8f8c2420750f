import pytest
import torch

from safemerge.engines import precision
from safemerge.engines.precision import compute_dtype


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_declared_type_is_taken_on_every_device(name, device):
    assert compute_dtype(name, device=device) is getattr(torch, name)


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [
        (True, False, torch.bfloat16),
        (False, True, torch.bfloat16),
        (False, False, torch.float32),
    ],
)
def test_auto_on_a_cpu_is_bfloat16_only_where_it_is_native(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert compute_dtype("auto", device="cpu") is expected


def test_a_torch_that_cannot_tell_counts_as_not_native(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(precision.torch.cpu, name, raising=False)
    assert compute_dtype("auto", device="cpu") is torch.float32


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_a_gpu_follows_the_gpu(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native)
    assert compute_dtype("auto", device="cuda") is expected
