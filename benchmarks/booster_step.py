"""Time and peak memory of Booster's step, every way, as ratios to one SFT step on the same rows.

Ways: the plain SFT step (padded rows as drawn, output layer on every position), and every
backend of Booster's step; ``three_pass, plain`` is what the public code computes. Options, alone
and together: output layer on target tokens only (``targets``), rows sorted by length before they
are cut into batches (``bucket``: less padding), the common beginning of a batch's rows computed
once (``prefix``), cross-entropy over chunks of positions (``chunked``). The floor is the token
work, (|f| + 2 |h|) / |f|.

    .venv/bin/python benchmarks/booster_step.py [--device cuda --dtype bfloat16] [--shape 1b]

The claims are the ratios, all from one run; each way's time is the median of interleaved rounds.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from safemerge.config.training import LoraSpec
from safemerge.training.batch import IGNORED, EncodedSample, TokenBatch, collate
from safemerge.training.booster import BACKENDS, BoosterInputs
from safemerge.training.gradient import accumulate, logical_batch, zero_gradients
from safemerge.training.lora import attach_lora
from safemerge.training.sft import target_loss

SHAPES = {
    # vocabulary, width, MLP width, layers, heads, key-value heads, tied
    "pico": (512, 64, 128, 2, 2, 1, True),
    "smollm2": (49152, 576, 1536, 30, 9, 3, True),
    "1b": (128256, 2048, 8192, 16, 32, 8, True),
    "8b": (128256, 4096, 14336, 32, 32, 8, False),
}
OPTIONS = {
    "plain": (),
    "targets": ("targets",),
    "chunked": ("chunked",),
    "bucket": ("bucket",),
    "prefix": ("prefix", "targets"),
    "all": ("targets", "bucket", "prefix"),
}
CHUNK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--shape", default="smollm2", choices=SHAPES, help="random weights")
    parser.add_argument("--model", metavar="FOLDER", help="a real checkpoint instead of a shape")
    parser.add_argument("--batch", type=int, default=10, help="rows of each data set a step")
    parser.add_argument("--tokens", type=int, default=256, help="longest row")
    parser.add_argument("--shortest", type=int, default=64, help="shortest row")
    parser.add_argument("--shared", type=int, default=24, help="tokens that all rows begin with")
    parser.add_argument("--rank", type=int, default=32, help="LoRA rank, on q, k and v")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of every way")
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=OPTIONS)
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()

    model = _model(options)
    pool = [_rows(options, seed) for seed in range(2)]
    ways = _ways(model, options, pool)
    rows = _measure(ways, options)
    tokens = {name: way["tokens"] for name, way in ways.items()}
    _print(rows, tokens, options)
    if options.json:
        told = {
            "machine": _machine(options),
            "options": vars(options),
            "ways": {n: {**row, "tokens": tokens[n]} for n, row in rows.items()},
        }
        Path(options.json).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _model(options):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    dtype = getattr(torch, options.dtype)
    if options.model:
        base = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    else:
        vocabulary, width, inner, layers, heads, kv_heads, tied = SHAPES[options.shape]
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=tied,
        )
        with torch.device(options.device):
            base = LlamaForCausalLM(config).to(dtype)
    spec = LoraSpec(rank=options.rank, alpha=4.0, targets=["q_proj", "k_proj", "v_proj"])
    return attach_lora(base.to(options.device), spec, where="benchmark").train()


def _rows(options, seed):
    """Eight batches' rows of one data set: a common beginning, then half prompt, half target."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(8 * options.batch):
        length = drawn.randint(options.shortest, options.tokens)
        own = [drawn.randrange(10, 500) for _ in range(length - options.shared)]
        ids = (*range(5, 5 + options.shared), *own)
        rows.append(EncodedSample(ids, options.shared + max(1, len(own) // 2)))
    return rows


def _batches(rows, options, chosen):
    """The pool's batches: sorted by length with `bucket`, beginnings shared with `prefix`."""
    rows = sorted(rows, key=lambda row: len(row.ids)) if "bucket" in chosen else rows
    cut = [rows[i : i + options.batch] for i in range(0, len(rows), options.batch)]
    made = [collate(part) for part in cut]
    return made if "prefix" in chosen else [replace(batch, num_shared=0) for batch in made]


def _all_positions(model, batch, *, chunked=False):
    """The same loss with the output layer on every position, at once or in chunks."""
    causal = model.get_base_model()
    hidden = (
        causal.base_model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        )
        .last_hidden_state[:, :-1]
        .flatten(0, 1)
    )
    targets = batch.labels[:, 1:].flatten()
    head = causal.get_output_embeddings()

    def entropy(hidden, targets):
        return torch.nn.functional.cross_entropy(
            head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum"
        )

    if not chunked:
        return entropy(hidden, targets) / (targets != IGNORED).sum()
    parts = zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    total = sum(
        torch.utils.checkpoint.checkpoint(entropy, *part, use_reentrant=False) for part in parts
    )
    return total / (targets != IGNORED).sum()


def _ways(model, options, pool):
    """Way by name: a step over the pool's batches, and the real tokens that it computes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    ways = {}
    for name in options.options:
        chosen = OPTIONS[name]
        loss = target_loss if "targets" in chosen else _all_positions
        if "chunked" in chosen:
            loss = partial(_all_positions, chunked=True)
        pairs = list(zip(*(_batches(rows, options, chosen) for rows in pool), strict=True))

        def sft(index, loss=loss, pairs=pairs):
            zero_gradients(parameters)
            accumulate(model, _whole(pairs[index][0], options), loss=loss)

        first, second = (sum(b.num_tokens for b in each) for each in zip(*pairs, strict=True))
        ways[f"sft, {name}"] = {"step": sft, "tokens": first}
        for backend, take in BACKENDS.items():
            if backend == "grouped" and loss is not target_loss:
                continue  # its joint pass has the output layer on target tokens only

            def booster(index, take=take, loss=loss, pairs=pairs):
                alignment, harmful = (_whole(batch, options) for batch in pairs[index])
                take(
                    BoosterInputs(
                        model=model,
                        parameters=parameters,
                        alignment=alignment,
                        harmful=harmful,
                        regularizer_strength=5.0,
                        perturbation_step=0.1,
                        loss=loss,
                    )
                )

            ways[f"{backend}, {name}"] = {"step": booster, "tokens": first + 2 * second}
    return ways


def _whole(batch: TokenBatch, options):
    return logical_batch(batch, num_parts=1, device=options.device)


def _measure(ways, options):
    """Median seconds and peak memory of a step, all ways in turn in every round."""
    for way in ways.values():
        way["step"](0)  # not timed: first calls allocate
    seconds = {name: [] for name in ways}
    peaks = dict.fromkeys(ways)
    for number in range(options.rounds):
        for name, way in ways.items():
            if options.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
            for index in range(8):
                way["step"](index)
            if options.device == "cuda":
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            seconds[name].append((time.perf_counter() - started) / 8)
        print(f"round {number + 1} of {options.rounds}", flush=True)
    if options.device == "cpu":
        peaks = {name: _cpu_peak(way["step"]) for name, way in ways.items()}
    return {
        name: {"seconds": statistics.median(seconds[name]), "peak_mib": peaks[name]}
        for name in ways
    }


def _cpu_peak(step):
    """Peak of the tensors allocated during one step, in MiB, by torch's profiler."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step(0)
    held = peak = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    ):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def _machine(options):
    if options.device == "cuda":
        return {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {
        "device": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "process_peak_mib": peak,
    }


def _print(rows, tokens, options):
    first = next(name for name in rows if name.startswith("sft"))
    plain = rows[first]
    shape = options.model or f"{options.shape}-shaped, random weights"
    print(f"\n{shape}, {options.dtype} on {_machine(options)['device']}")
    print(
        f"{options.batch} rows of {options.shortest} to {options.tokens} tokens, "
        f"LoRA r {options.rank}"
    )
    memory = "peak memory" if options.device == "cuda" else "memory of a step"
    print(
        f"\n{'way':<24}{'s a step':>10}{'time / sft':>12}{memory + ' / sft':>24}"
        f"{'tokens / sft':>14}"
    )
    for name, row in rows.items():
        print(
            f"{name:<24}{row['seconds']:>10.4f}{row['seconds'] / plain['seconds']:>12.2f}"
            f"{row['peak_mib'] / plain['peak_mib']:>24.2f}{tokens[name] / tokens[first]:>14.2f}"
        )
    for name in options.options:
        own = rows[f"sft, {name}"]["seconds"]
        best = min(
            (row["seconds"], way)
            for way, row in rows.items()
            if way.endswith(f", {name}") and not way.startswith("sft")
        )
        floor = tokens[f"in_place, {name}"] / tokens[f"sft, {name}"]
        print(
            f"{name}: best exact backend {best[1].split(',')[0]} = {best[0] / own:.2f} x its own "
            f"SFT step (floor {floor:.2f}), {best[0] / plain['seconds']:.2f} x '{first}'"
        )


if __name__ == "__main__":
    main()
