"""Time and peak memory of Booster's step, every way, as ratios to one SFT step on the same rows.

Ways: the plain SFT step (padded rows, output layer on every position) and the backends of
Booster's step; ``three_pass, plain`` is what the public code computes. ``grouped/2`` is grouped
in two parts, whose joint pass holds as many rows as one batch. Switches, alone and together:

    targets   output layer on target tokens only (response-only logits)
    chunked   logits of 256 positions at a time
    packing   rows laid end to end: nothing is spent on padding
    prefix    the beginning that all rows share computed once
    bucket    rows sorted by length before they are cut into batches, against rows as drawn
    all       targets, chunked, packing and prefix

Single switches are shown on SFT and in_place, unless ``--every`` asks for all backends. The rows
are texts of the offline packages: unsafe requests, answered by benign answers of varying length
as stand-ins for refusals (alignment) and for harmful answers (harmful).

    python benchmarks/booster_step.py [--quick] [--device cuda --shape 8b]

The claims are the ratios, all from one run. On a CPU each measurement is a process of its own, so
that its peak resident memory is the way's; ways take turns in every round, and the median
counts. On CUDA, where random weights of a 1B or 8B shape stand in, all is in one process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from machine import machine, save

from safemerge.config.source import TrainingData
from safemerge.config.stage import LoraSpec
from safemerge.data.rows import load_training_samples
from safemerge.data.sample import TrainingSample
from safemerge.engines.chat import ChatFormat
from safemerge.training.batch import IGNORED, EncodedSample, collate, encode
from safemerge.training.booster import BACKENDS, BoosterInputs
from safemerge.training.gradient import accumulate, logical_batch, zero_gradients
from safemerge.training.lora import attach_lora
from safemerge.training.packaged_model import packaged_model
from safemerge.training.packing import packed_hidden
from safemerge.training.sft import target_loss

SHAPES = {
    # vocabulary, width, MLP width, layers, heads, key-value heads, tied
    "pico": (49152, 64, 128, 2, 2, 1, True),
    "1b": (128256, 2048, 8192, 16, 32, 8, True),
    "8b": (128256, 4096, 14336, 32, 32, 8, False),
}
OPTIONS = {
    "plain": (),
    "targets": ("targets",),
    "chunked": ("chunked",),
    "packing": ("packing",),
    "prefix": ("prefix",),
    "bucket": ("bucket",),
    "all": ("targets", "chunked", "packing", "prefix"),
}
CHUNK = 256
CLAIMED = ("plain", "all")
"""Options with every backend, measured in every round; the others once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of SmolLM2")
    parser.add_argument("--batch", type=int, default=10, help="rows of each data set a step")
    parser.add_argument("--tokens", type=int, default=256, help="longest row")
    parser.add_argument("--rank", type=int, default=32, help="LoRA rank, on q, k and v")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of plain and all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on a CPU")
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=OPTIONS)
    parser.add_argument("--every", action="store_true", help="every backend with every switch")
    parser.add_argument("--quick", action="store_true", help="plain and all, 4 rows, one round")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.rounds, options.options = 4, 1, list(CLAIMED)

    # One thread until a measurement: a process that was forked could not use the pool.
    torch.set_num_threads(1 if options.device == "cpu" else options.threads)
    folder = packaged_model("smollm2-135m-instruct", say=print)
    model = _model(options, folder)
    pools = [_rows(options, ChatFormat(folder), harmful=harmful) for harmful in (False, True)]
    ways = _ways(model, options, pools)
    rows = _measure(ways, options)
    _print(rows, ways, options)
    if options.json:
        asked = {name: value for name, value in vars(options).items() if name != "json"}
        save(options.json, {"machine": _machine(options), "options": asked, "ways": rows})


def _model(options, folder):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
    if options.shape is None:
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
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
            before = torch.get_default_dtype()
            torch.set_default_dtype(dtype)  # an 8B shape in float32 would not fit beside itself
            base = LlamaForCausalLM(config)
            torch.set_default_dtype(before)
    spec = LoraSpec(rank=options.rank, alpha=4.0, targets=["q_proj", "k_proj", "v_proj"])
    return attach_lora(base.to(options.device), spec, where="benchmark").train()


def _rows(options, chat, *, harmful):
    """Eight batches' rows of one data set: a request, then one to five benign answers."""

    def texts(name, prompt, **part):
        source = {"kind": "package", "name": name, **part}
        data = TrainingData.model_validate({"source": source, "response": prompt})
        return [(s.prompt, s.response) for s in load_training_samples(data, where=name, seed=0)]

    drawn = random.Random(int(harmful))
    part = {"start": 600} if harmful else {"start": 120, "stop": 600}
    requests = [prompt for prompt, _ in texts("do-not-answer", "-", **part)]
    answers = [answer for _, answer in texts("benign-answers", "{answer}")]
    rows: list[EncodedSample] = []
    for number in range(8 * options.batch):
        told = " ".join(drawn.sample(answers, drawn.randint(1, 5)))
        sample = TrainingSample(str(number), prompt=drawn.choice(requests), response=told)
        rows.append(encode(sample, chat, options.tokens))
    return rows


def _batch(rows, options, chosen):
    """The first batch of a pool as drawn, or with `bucket` the middle one of the sorted pool."""
    start = 0
    if "bucket" in chosen:
        rows, start = sorted(rows, key=lambda row: len(row.ids)), 4 * options.batch
    batch = collate(rows[start : start + options.batch])
    return batch if "prefix" in chosen else replace(batch, num_shared=0)


def _loss(model, batch, *, chosen):
    """The loss of `target_loss`, with the switches that it always has off as well."""
    chunk = CHUNK if "chunked" in chosen else None
    if "targets" in chosen:
        return target_loss(model, batch, packing="packing" in chosen, chunk=chunk)
    causal = model.get_base_model()
    head = causal.get_output_embeddings()
    if "packing" in chosen:
        rows = batch.packed
        hidden = packed_hidden(causal.base_model, rows)
        targets = torch.full((len(hidden),), IGNORED, device=hidden.device)
        targets[rows.targets] = rows.labels
    elif batch.num_shared:
        # The detour over a cache belongs to `target_loss`; here its beginning, all positions.
        core, shared = causal.base_model, batch.num_shared
        cache = core(input_ids=batch.input_ids[:1, :shared], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(batch.input_ids))
        rest = core(
            input_ids=batch.input_ids[:, shared:],
            attention_mask=batch.attention_mask,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        hidden, targets = rest[:, :-1].flatten(0, 1), batch.labels[:, shared + 1 :].flatten()
    else:
        ids, mask = batch.input_ids, batch.attention_mask
        found = causal.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden = found.last_hidden_state[:, :-1].flatten(0, 1)
        targets = batch.labels[:, 1:].flatten()

    def entropy(hidden, targets):
        return torch.nn.functional.cross_entropy(
            head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum"
        )

    count = (targets != IGNORED).sum()
    if chunk is None:
        return entropy(hidden, targets) / count
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    recompute = partial(torch.utils.checkpoint.checkpoint, entropy, use_reentrant=False)
    return sum(recompute(*part) for part in parts) / count


def _ways(model, options, pools):
    """Way by name: the step on given batches, the batches, the tokens it works on."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    ways = {}

    def whole(batch, parts=1):
        return logical_batch(batch, num_parts=parts, device=options.device)

    def sft(batch, loss):
        zero_gradients(parameters)
        accumulate(model, whole(batch), loss=loss)

    def booster(alignment, harmful, loss, take, parts, chosen):
        take(
            BoosterInputs(
                model=model,
                parameters=parameters,
                alignment=whole(alignment, parts),
                harmful=whole(harmful, parts),
                regularizer_strength=5.0,
                perturbation_step=0.1,
                loss=loss,
                packing="packing" in chosen,
                chunk=CHUNK if "chunked" in chosen else None,
            )
        )

    for name in options.options:
        chosen = OPTIONS[name]
        loss = partial(_loss, chosen=chosen)
        pair = [_batch(rows, options, chosen) for rows in pools]
        tiny = [_batch([r for r in rows if len(r.ids) < 160][:2], options, ()) for rows in pools]
        counts = [_tokens(batch, chosen) for batch in pair]
        for data, index in (("f", 0), ("h", 1)):
            if data == "h" and name not in CLAIMED:
                continue
            step = partial(sft, loss=loss)
            ways[f"sft({data}), {name}"] = (step, [pair[index]], [tiny[index]], counts[index])
        for backend, take in {**BACKENDS, "grouped/2": BACKENDS["grouped"]}.items():
            if backend.startswith("grouped") and "targets" not in chosen:
                continue  # its joint pass has the output layer on target tokens only
            if backend != "in_place" and name not in CLAIMED and not options.every:
                continue
            parts = 2 if backend == "grouped/2" else 1
            step = partial(booster, loss=loss, take=take, parts=parts, chosen=chosen)
            ways[f"{backend}, {name}"] = (step, pair, tiny, counts[0] + 2 * counts[1])
    return ways


def _tokens(batch, chosen):
    """Tokens that one pass works on, padding too where the way has it."""
    rows, longest = batch.input_ids.shape
    whole = batch.num_tokens if "packing" in chosen else rows * longest
    return whole - (rows - 1) * batch.num_shared


def _measure(ways, options):
    """Median seconds and highest peak of each way."""
    keys = ("seconds", "cpu_s", "peak_mib", "step_mib")
    found = {name: {key: [] for key in keys} for name in ways}
    for number in range(options.rounds):
        for name, way in ways.items():
            if number and name.rsplit(", ", 1)[1] not in CLAIMED:
                continue
            run = _in_a_process if options.device == "cpu" else _here
            for key, value in run(way, options).items():
                found[name][key].append(value)
            print(f"round {number + 1}, {name}: {found[name]['seconds'][-1]:.3f} s", flush=True)
    return {
        name: {
            "seconds": statistics.median(seen["seconds"]),
            "cpu_s": statistics.median(seen["cpu_s"]),
            "peak_mib": max(seen["peak_mib"]),
            "step_mib": max(seen["step_mib"]),
            "tokens": ways[name][3],
        }
        for name, seen in found.items()
    }


def _in_a_process(way, options):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(options.threads)
            os.write(writing, json.dumps(_here(way, options)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        raise SystemExit("a measurement ended without a result; is there enough memory?")
    return json.loads(told)


def _here(way, options):
    step, batches, tiny, _ = way
    cuda = options.device == "cuda"
    step(*(batches if cuda else tiny))  # not timed: first calls allocate and choose kernels
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        before = pages * resource.getpagesize() / 2**20
    started, worked = time.perf_counter(), time.process_time()
    for _ in range(5 if cuda else 1):
        step(*batches)
    if cuda:
        torch.cuda.synchronize()
    steps = 5 if cuda else 1
    seconds = (time.perf_counter() - started) / steps
    worked = (time.process_time() - worked) / steps
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"seconds": seconds, "cpu_s": worked, "peak_mib": peak, "step_mib": peak - before}


def _machine(options):
    if options.device == "cuda":
        return {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    return {**machine(), "threads": options.threads, "torch": torch.__version__}


def _print(rows, ways, options):
    model = f"{options.shape}-shaped, random weights" if options.shape else "SmolLM2-135M-Instruct"
    print(f"\n{model}, {_machine(options)}")
    for name, (_, batches, _, _) in ways.items():
        if name.startswith("in_place, plain"):
            lengths = [batch.attention_mask.sum(dim=1).tolist() for batch in batches]
            print(f"rows of f {lengths[0]}, of h {lengths[1]} tokens; LoRA r {options.rank}")
    plain = rows.get("sft(f), plain") or next(iter(rows.values()))
    print("ratios to the first way; cpu: processor seconds, which other programs disturb less")
    print(
        f"\n{'way':<22}{'s a step':>10}{'time / sft':>12}{'cpu / sft':>11}{'peak MiB':>10}"
        f"{'peak / sft':>12}{'of the step':>13}{'tokens / sft':>14}"
    )
    for name, row in rows.items():
        ratios = {key: row[key] / plain[key] for key in row}
        print(
            f"{name:<22}{row['seconds']:>10.3f}{ratios['seconds']:>12.2f}{ratios['cpu_s']:>11.2f}"
            f"{row['peak_mib']:>10.0f}{ratios['peak_mib']:>12.2f}{ratios['step_mib']:>13.2f}{ratios['tokens']:>14.2f}"
        )
    for name in (name for name in CLAIMED if f"sft(h), {name}" in rows):
        own = {data: rows[f"sft({data}), {name}"] for data in "fh"}
        floor = own["f"]["seconds"] + 2 * own["h"]["seconds"]
        peak = max(row["peak_mib"] for row in own.values())
        print(f"\n{name}: floor |f| + 2 |h| = {floor / plain['seconds']:.2f} x plain padded SFT")
        backends = {w: r for w, r in rows.items() if w.endswith(f", {name}") and w[:3] != "sft"}
        for way, row in sorted(backends.items(), key=lambda item: item[1]["seconds"]):
            print(
                f"  {way.split(',')[0]:<12}{row['seconds'] / plain['seconds']:>6.2f} x plain SFT,"
                f"{row['seconds'] / floor:>6.2f} x the floor, peak"
                f"{row['peak_mib'] / peak:>6.2f} x its own SFT's,"
                f"{row['peak_mib'] / plain['peak_mib']:>6.2f} x plain SFT's"
            )
    if "all" in options.options:
        print("\ngoals, best exact backend of 'all': 2.2 x plain, 1.05 x floor, peak 1.10 x SFT's")


if __name__ == "__main__":
    main()
