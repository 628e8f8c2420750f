"""Quantised checkpoints, known by their tensors and config: they cannot be merged as stored."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from safemerge.errors import CheckpointError
from safemerge.weights.header import TensorEntry
from safemerge.weights.model_class import is_dead_buffer

_MARKS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "bitsandbytes 4-bit",
        re.compile(r"\.(?:nested_)?(?:absmax|quant_map)$|\.quant_state\.bitsandbytes"),
    ),
    ("bitsandbytes 8-bit", re.compile(r"\.(?:SCB|weight_format)$")),
    ("GPTQ or AWQ", re.compile(r"\.(?:qweight|qzeros|g_idx)$")),
    ("FP8", re.compile(r"\.weight_scale_inv$")),
    ("compressed-tensors", re.compile(r"\.weight_(?:packed|global_scale)$")),
    ("MXFP4", re.compile(r"_proj_(?:blocks|scales)$")),
    ("HQQ", re.compile(r"\.W_q$")),
    ("quanto", re.compile(r"\.weight\._(?:data|scale|shift)$")),
    ("AQLM", re.compile(r"\.codebooks$")),
    ("scaled integer or FP8", re.compile(r"\.(?:weight|input|activation)_scale(?:_2|s)?$")),
)
"""What each way of quantising stores beside or instead of weights, by the ends of names."""

_DENSE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_NO_WEIGHTS = (torch.int64, torch.bool)


def check_not_quantized(
    folder: Path, config: Mapping[str, Any], entries: Mapping[str, TensorEntry]
) -> None:
    """Refuse a checkpoint whose weights are quantised.

    It is one if integer or 8-bit float tensors stand beside scales of a known kind, or beside a
    ``quantization_config``. That config beside dense weights alone is a leftover.

    Args:
        folder: The checkpoint's folder, for the message.
        config: Content of config.json.
        entries: Headers of all stored tensors by name; masks that are no weights do not count.

    Raises:
        CheckpointError: If it is; names the kind, and what to use instead.
    """
    packed = {
        name: entry.dtype
        for name, entry in entries.items()
        if entry.dtype not in (*_DENSE, *_NO_WEIGHTS) and not is_dead_buffer(name, entry)
    }
    kind = _kind(config, entries)
    if not packed or kind is None:
        return
    name, dtype = next(iter(sorted(packed.items())))
    raise CheckpointError(
        f"{folder}: weights must be float32, bfloat16 or float16; got a quantised checkpoint "
        f"({kind}: '{name}' {str(dtype).removeprefix('torch.')}, and {len(packed) - 1} more such "
        f"tensors). Use the unquantised model that it was made from, also as the base of an "
        f"adapter trained on it, or write one with transformers: "
        f"AutoModelForCausalLM.from_pretrained(...).dequantize().save_pretrained(...)."
    )


def declared_quantization(config: Mapping[str, Any]) -> str | None:
    """Return the method that a config's ``quantization_config`` names, None without one."""
    for section in (config, config.get("text_config")):
        found = section.get("quantization_config") if isinstance(section, Mapping) else None
        if isinstance(found, Mapping) and found:
            return _method(found)
    return None


def _method(declared: Mapping[str, Any]) -> str:
    method = str(declared.get("quant_method") or "unnamed method")
    bits = declared.get("bits")
    if declared.get("load_in_4bit") or declared.get("_load_in_4bit"):
        bits = 4
    elif declared.get("load_in_8bit") or declared.get("_load_in_8bit"):
        bits = 8
    return method if bits is None else f"{method}, {bits}-bit"


def _kind(config: Mapping[str, Any], entries: Mapping[str, TensorEntry]) -> str | None:
    declared = declared_quantization(config)
    if declared is not None:
        return declared
    return next(
        (kind for kind, mark in _MARKS if any(mark.search(name) for name in entries)), None
    )
