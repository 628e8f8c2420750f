"""Random checkpoints of a real model's shapes: for timing, where the values do not matter.

The base is normal with a standard deviation of 0.02; an expert is the base plus a tenth of that,
rounded to bfloat16. Made once into a folder, then found there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

SHARD_BYTES = 10**9


class Shape(NamedTuple):
    hidden: int
    layers: int
    intermediate: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool


SHAPES = {
    "pico": Shape(64, 2, 256, 2, 2, 512, True),
    "smollm2-135m": Shape(576, 30, 1536, 9, 3, 49152, True),
    "llama-1b": Shape(2048, 16, 8192, 32, 8, 128256, True),
    "llama-8b": Shape(4096, 32, 14336, 32, 8, 128256, False),
}


def tensor_shapes(shape):
    """Shape of every tensor of a Llama, by name."""
    width = shape.hidden // shape.heads * shape.key_value_heads
    found = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        found |= {
            f"{prefix}.input_layernorm.weight": (shape.hidden,),
            f"{prefix}.mlp.down_proj.weight": (shape.hidden, shape.intermediate),
            f"{prefix}.mlp.gate_proj.weight": (shape.intermediate, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": (shape.intermediate, shape.hidden),
            f"{prefix}.post_attention_layernorm.weight": (shape.hidden,),
            f"{prefix}.self_attn.k_proj.weight": (width, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": (shape.hidden, shape.hidden),
            f"{prefix}.self_attn.q_proj.weight": (shape.hidden, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": (width, shape.hidden),
        }
    found["model.norm.weight"] = (shape.hidden,)
    if not shape.tied:
        found["lm_head.weight"] = (shape.vocabulary, shape.hidden)
    return found


def checkpoints(folder, name, experts, layers=None):
    """Folders of a base and some experts, made where they are missing; fewer layers if given."""
    shape = SHAPES[name]
    if layers is not None:
        shape, name = shape._replace(layers=layers), f"{name}-{layers}"
    models = ["base", *(f"expert{at}" for at in range(1, experts + 1))]
    folders = {model: Path(folder) / name / model for model in models}
    for seed, path in enumerate(folders.values()):
        if not (path / "config.json").is_file():
            _write(path, shape, seed)
    return folders


def _write(path, shape, seed):
    path.mkdir(parents=True, exist_ok=True)
    shards, size = [{}], 0
    for at, (name, dims) in enumerate(tensor_shapes(shape).items()):
        tensor = _values(dims, at, 0)
        if seed:
            tensor = tensor.float().add(_values(dims, at, seed).float(), alpha=0.1)
        tensor = tensor.to(torch.bfloat16)
        if size + 2 * tensor.numel() > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += 2 * tensor.numel()
    files = ["model.safetensors"]
    if (count := len(shards)) > 1:
        files = [f"model-{at:05d}-of-{count:05d}.safetensors" for at in range(1, count + 1)]
        weight_map = {
            name: file for file, part in zip(files, shards, strict=True) for name in part
        }
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, part in zip(files, shards, strict=True):
        save_file(part, path / file, metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(_config(shape), indent=2))


def _values(dims, at, seed):
    generator = torch.Generator().manual_seed(1000 * seed + at)
    return torch.empty(dims, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)


def _config(shape):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
    }
