"""Which floating type a processor multiplies fast."""

from __future__ import annotations

import torch


def _has_bf16_instructions() -> bool:
    """Tell whether this CPU multiplies bfloat16 natively (AVX512-BF16 or AMX).

    Without them bf16 products are emulated, about ten times slower than float32.
    """
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    amx = getattr(torch.cpu, "_is_amx_tile_supported", None)
    if supported is not None and supported():
        return True
    return amx is not None and bool(amx())


def compute_dtype(declared: str, *, device: str) -> torch.dtype:
    """Resolve a declared dtype.

    Args:
        declared: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        device: ``cpu`` or ``cuda``.

    Returns:
        The torch type; for ``auto`` bfloat16 where it is native, else float32.
    """
    if declared != "auto":
        dtype: torch.dtype = getattr(torch, declared)
        return dtype
    if device == "cpu":
        return torch.bfloat16 if _has_bf16_instructions() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
