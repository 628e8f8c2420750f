"""Record what mergekit makes of the files in mergekit.yaml, with the models, for tests.

    PYTHONPATH=. benchmarks/.peers/mergekit/bin/python tests/reference/record_mergekit.py

needs mergekit in an environment of its own (``make bench-peers``) and jaxtyping beside it, for
random masks: mergekit's draws are replaced by safemerge's counter-based ones, so that what is done
with a mask can be compared. Everything else is mergekit's own. Versions stand in the metadata.
"""

import json
import math
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods import generalized_task_arithmetic as task_vectors
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from word_tokenizer import word_tokenizer

from safemerge.merge.mask import keep_bits_within, keep_limits

HERE = Path(__file__).resolve().parent
WIDTH, LAYERS, RANK = 8, 3, 2
ADAPTERS = {"lora": ("base", 21), "lora2": ("other", 22)}
drawing = {}


def random_like(weights, *, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator) * scale
        for name, weight in sorted(weights.items())
    }


def make_models(folder):
    config = LlamaConfig(
        vocab_size=16, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, head_dim=WIDTH // 2,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    base = random_like(LlamaForCausalLM(config).state_dict(), seed=0, scale=0.3)
    moves = {name: random_like(base, seed=at, scale=0.1) for name, at in
             (("math", 1), ("code", 2), ("other", 3))}  # fmt: skip
    moves["near"] = {
        name: 0.8 * step + 0.5 * moves["code"][name] for name, step in moves["math"].items()
    }
    moves["base"] = {name: torch.zeros_like(weight) for name, weight in base.items()}
    found = {}
    for model, steps in moves.items():
        (folder / model).mkdir()
        config.save_pretrained(folder / model)
        weights = {name: base[name] + step for name, step in steps.items()}
        (folder / model / "config.json").write_text(
            json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
        )
        save_file(weights, folder / model / "model.safetensors", metadata={"format": "pt"})
        found.update({f"models/{model}/{name}": weight for name, weight in weights.items()})
    for name, (host, seed) in ADAPTERS.items():
        found.update(make_adapter(folder, name, host, seed))
    return found


def make_adapter(folder, name, host, seed):
    """Write a LoRA adapter on the query and down projections."""
    shapes = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.down_proj": (WIDTH, 2 * WIDTH)}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        for part, (rows, columns) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.{part}"
            for side, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
                factor = torch.randn(shape, generator=generator) * 0.3
                weights[f"{key}.lora_{side}.weight"] = factor
    (folder / name).mkdir()
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 4,
        "target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": host,
    }  # fmt: skip
    (folder / name / "adapter_config.json").write_text(json.dumps(settings))
    save_file(weights, folder / name / "adapter_model.safetensors")
    return {f"models/{name}/{key}": weight for key, weight in weights.items()}


def share_masks():
    """Let mergekit draw what safemerge draws: by tensor and model, at seed 0."""
    sparsify = task_vectors.sparsify
    merge_group = task_vectors.GeneralizedTaskArithmeticMerge.merge_group

    def named(self, group, /, **parameters):
        drawing.update(tensor=group.metadata.name, models=[item.id for item in group.non_base])
        return merge_group(self, group, **parameters)

    def by_model(delta, **options):
        drawing["model"] = Path(str(drawing["models"].pop(0)).split("+")[-1]).name
        return sparsify(delta, **options)

    def bernoulli(chances):
        limits = keep_limits(chances.double().flatten())
        bits = keep_bits_within(0, drawing["tensor"], drawing["model"], 0, limits)
        return (bits != 0).reshape(chances.shape).to(chances.dtype)

    task_vectors.GeneralizedTaskArithmeticMerge.merge_group = named
    task_vectors.sparsify = by_model
    torch.bernoulli = bernoulli


def main():
    share_masks()
    documents = yaml.safe_load((HERE / "mergekit.yaml").read_text())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded = make_models(folder)
        for file, document in documents.items():
            located = locate({**document, "dtype": "float32"}, folder)
            out = folder / f"merged-{file}"
            options = MergeOptions(
                lora_merge_cache=str(folder / "cache"), quiet=True, write_model_card=False,
                copy_tokenizer=False,
            )  # fmt: skip
            run_merge(MergeConfiguration.model_validate(located), str(out), options)
            for part in sorted(out.glob("*.safetensors")):
                for key, weight in load_file(part).items():
                    recorded[f"merged/{file}/{key}"] = weight
        versions = {package: version(package) for package in ("mergekit", "torch", "transformers")}
        save_file(recorded, HERE / "mergekit.safetensors", metadata=versions)
        (folder / "words").mkdir()
        record_tokenizers(folder / "words", versions)
    assert all(math.isfinite(float(item.sum())) for item in recorded.values())
    sys.stderr.write(f"{len(documents)} files, {versions}\n")


def make_word_model(folder, name, described, seed):
    """Write a model of one layer whose tokens are words, with a row for each."""
    words = [*described["words"], *described.get("added", [])]
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=WIDTH // 2,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    weights = random_like(LlamaForCausalLM(config).state_dict(), seed=seed, scale=0.3)
    (folder / name).mkdir()
    text = json.dumps({**config.to_dict(), "architectures": ["LlamaForCausalLM"]})
    (folder / name / "config.json").write_text(text)
    save_file(weights, folder / name / "model.safetensors", metadata={"format": "pt"})
    for file, document in word_tokenizer(**described).items():
        (folder / name / file).write_text(json.dumps(document))
    return {f"models/{name}/{key}": weight for key, weight in weights.items()}


def record_tokenizers(folder, versions):
    """Record merges of models with tokenizers of their own, and what tokenizer each has."""
    given = yaml.safe_load((HERE / "mergekit_tokenizers.yaml").read_text())
    recorded, tokenizers = {}, {}
    for seed, (name, described) in enumerate(given["models"].items()):
        recorded.update(make_word_model(folder, name, described, seed))
    for file, document in given["files"].items():
        out = folder / f"merged-{file}"
        options = MergeOptions(quiet=True, write_model_card=False)
        located = locate({**document, "dtype": "float32"}, folder)
        run_merge(MergeConfiguration.model_validate(located), str(out), options)
        merged = load_file(out / "model.safetensors")
        recorded.update({f"merged/{file}/{key}": weight for key, weight in merged.items()})
        tokenizer = AutoTokenizer.from_pretrained(out)
        rows = json.loads((out / "config.json").read_text())["vocab_size"]
        ids = tokenizer.get_vocab()
        tokenizers[file] = {"ids": ids, "rows": rows, "template": tokenizer.chat_template}
    metadata = {**versions, "tokenizers": json.dumps(tokenizers)}
    save_file(recorded, HERE / "mergekit_tokenizers.safetensors", metadata=metadata)


def locate(value, folder):
    """Return a document whose models are absolute folders."""
    if isinstance(value, dict):
        return {
            key: "+".join(str(folder / part) for part in item.split("+"))
            if key in ("model", "base_model", "tokenizer_source", "source")
            and isinstance(item, str)
            and (key in ("model", "base_model") or item not in ("base", "union"))
            else locate(item, folder)
            for key, item in value.items()
        }
    return [locate(item, folder) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
