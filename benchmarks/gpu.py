"""What a GPU makes of a merge and of Booster's step, as ratios to its own copy and to SFT.

    PYTHONPATH=. python benchmarks/gpu.py [--device cpu --shape tiny] [--json FILE]

Three parts:

    equal     merges on the device against those on the CPU, bit for bit
    swap      a three-way merge of 8B-shaped layers (linear, TIES, DARE-TIES) into a model's
              weights, in GB/s of the model, beside a device copy of the same weights; base and
              experts on the device, in pinned host memory, or in mapped files
    booster   Booster's step beside an SFT step at 1B and 8B shape: time and peak memory

It needs torch, transformers and peft, and beside them pydantic and jaxtyping, which a machine
without a network can be brought (``pip install --target DIR pydantic jaxtyping``, and DIR in
PYTHONPATH); no Ray, no vLLM. Weights are random. An 8B shape has few layers, for all are alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial

import torch
from machine import machine, save
from shaped_checkpoints import SHAPES, checkpoints

from safemerge.config.recipe import MergeRecipe
from safemerge.config.stage import LoraSpec
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.transfer import DeviceInputs
from safemerge.training.batch import EncodedSample, collate
from safemerge.training.booster import BACKENDS, BoosterInputs
from safemerge.training.gradient import accumulate, logical_batch, zero_gradients
from safemerge.training.lora import attach_lora
from safemerge.training.sft import target_loss

PARTS = ("equal", "swap", "booster")
PLACES = ("device", "pinned", "mapped")
SIZES = {
    # shape of the swap, its layers; shapes of Booster's step with their layers, batch, tokens
    "8b": (("llama-8b", 4), (("llama-1b", 16), ("llama-8b", 8)), 10, 256),
    "tiny": (("pico", 2), (("pico", 2),), 2, 32),
}
EXPERTS = ("expert1", "expert2")


@dataclass
class Clock:
    """Seconds and peak memory of calls on a device, waited for."""

    device: torch.device

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __call__(self, call, rounds):
        """Median seconds of some rounds after one that does not count, and the peak beside."""
        call()
        self.wait()
        before = 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            call()
            self.wait()
            seconds.append(time.perf_counter() - started)
        peak = None
        if self.device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated(self.device) - before) / 2**30
        return statistics.median(seconds), peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--shape", default="8b", choices=SIZES)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", metavar="DIR", help="keep the random checkpoints there")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no GPU is there; try --device cpu --shape tiny.")
    os.environ.setdefault("SAFEMERGE_CACHE", tempfile.mkdtemp(prefix="safemerge-gpu-"))
    device = torch.device(options.device)
    found = {"machine": _machine(device), "shape": options.shape, "torch": torch.__version__}
    print(found["machine"])
    with tempfile.TemporaryDirectory() as folder:
        folder = options.work or folder
        for part in options.parts:
            started = time.perf_counter()
            found[part] = globals()[part](options, device, folder)
            print(f"({part}: {time.perf_counter() - started:.0f} s)\n", flush=True)
    if options.json:
        save(options.json, found)
    if "equal" in options.parts and not all(row["equal"] for row in found["equal"].values()):
        raise SystemExit("equal: a merge on the device is not that on the CPU.")


def equal(options, device, folder):
    """Whether merges on the device are those on the CPU, tensor by tensor."""
    folders = checkpoints(folder, "pico", len(EXPERTS))
    rows = {}
    for name, method in _methods().items():
        recipe = _recipe(folders, method)
        resident = ResidentCheckpoints.open(recipe)
        here = dict(resident.merged(recipe))
        inputs = DeviceInputs(device)
        there = {n: t.cpu() for n, t in resident.merged(recipe, device=device, inputs=inputs)}
        same = sum(torch.equal(here[at], there[at]) for at in here)
        rows[name] = {"equal": same == len(here), "tensors": len(here), "same": same}
        print(f"{name:<16} {same} of {len(here)} tensors bit-equal to the CPU's")
    return rows


def swap(options, device, folder):
    """A candidate's weights into a model's, in GB/s of the model, against a copy of them."""
    (shape, layers), rounds = SIZES[options.shape][0], options.rounds
    folders = checkpoints(folder, shape, len(EXPERTS), layers)
    first = _recipe(folders, _methods()["linear"])
    resident = ResidentCheckpoints.open(first, check=False)
    model = {n: t.to(device).clone() for n, t in resident.base_tensors()}
    other = {n: torch.empty_like(t) for n, t in model.items()}
    size = sum(t.numel() * t.element_size() for t in model.values())
    clock = Clock(device)

    def copy():
        for name, tensor in model.items():
            other[name].copy_(tensor)

    seconds, _ = clock(copy, rounds)
    rows = {"gb": size / 1e9, "copy": {"gb_s": size / 1e9 / seconds}}
    del other
    print(f"{shape}, {layers} layers, {size / 1e9:.2f} GB; copy {rows['copy']['gb_s']:.1f} GB/s")
    print(f"{'method':<12}{'models':<10}{'GB/s':>8}{'of a copy':>11}{'peak GiB':>10}")
    for place in PLACES:
        inputs = DeviceInputs(device, keep=place)
        for name in ("linear", "ties", "dare_ties"):
            drawn = iter(range(1, 1000))

            def load(name=name, inputs=inputs, drawn=drawn):
                # New weights each time, as a search has: nothing but thresholds is known of them.
                recipe = _recipe(folders, _methods(0.4 + next(drawn) / 1000)[name])
                for key, merged in resident.merged(recipe, device=device, inputs=inputs):
                    model[key].copy_(merged)

            seconds, peak = clock(load, rounds)
            rows[f"{name}, {place}"] = {
                "gb_s": size / 1e9 / seconds,
                "of_a_copy": size / 1e9 / seconds / rows["copy"]["gb_s"],
                "peak_gib": peak,
            }
            _print_row(name, place, rows[f"{name}, {place}"])
    return rows


def booster(options, device, folder):
    """Booster's step, every backend, as ratios to one SFT step on the same rows."""
    _, shapes, batch, tokens = SIZES[options.shape]
    rows = {}
    for shape, layers in shapes:
        model = _model(SHAPES[shape]._replace(layers=layers), device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        vocabulary = SHAPES[shape].vocabulary
        good, harmful = (_rows(batch, tokens, vocabulary, seed) for seed in (0, 1))
        loss = partial(target_loss, packing=False, chunk=None)
        there = [logical_batch(rows, num_parts=1, device=str(device)) for rows in (good, harmful)]

        def sft(model=model, parameters=parameters, loss=loss, there=there):
            zero_gradients(parameters)
            accumulate(model, there[0], loss=loss)

        clock = Clock(device)
        seconds, peak = clock(sft, options.rounds)
        rows[f"{shape}, sft"] = {"seconds": seconds, "peak_gib": peak}
        print(f"{shape}, {layers} layers, {batch} rows of {tokens} tokens at most, LoRA 32")
        print(f"  {'sft':<12}{seconds:>9.3f} s{'':>9}{_gib(peak)}")
        inputs = BoosterInputs(
            model=model,
            parameters=parameters,
            alignment=there[0],
            harmful=there[1],
            regularizer_strength=5.0,
            perturbation_step=0.01,
            loss=loss,
            packing=False,
            chunk=None,
        )
        for name, step in BACKENDS.items():
            took, most = clock(partial(step, inputs), options.rounds)
            rows[f"{shape}, {name}"] = {
                "seconds": took,
                "of_sft": took / seconds,
                "peak_gib": most,
                "peak_of_sft": most / peak if peak else None,
            }
            print(f"  {name:<12}{took:>9.3f} s{took / seconds:>7.2f} x{_gib(most)}")
        del model, parameters, there, inputs, sft
    return rows


def _methods(weight=0.4):
    weights = dict(zip(EXPERTS, (weight, 1.0 - weight), strict=True))
    density = {"density": dict.fromkeys(EXPERTS, 0.5)}
    return {
        "linear": {"name": "linear", "weights": {"base": 0.2, **weights}},
        "task_arithmetic": {"name": "task_arithmetic", "weights": weights},
        "ties": {"name": "ties", "weights": weights, **density},
        "dare_linear": {"name": "dare_linear", "weights": weights, **density},
        "dare_ties": {"name": "dare_ties", "weights": weights, **density},
    }


def _recipe(folders, method):
    refs = [{"name": name, "path": str(path)} for name, path in folders.items()]
    return MergeRecipe.model_validate({"base": refs[0], "experts": refs[1:], "method": method})


def _model(shape, device):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
    )
    before = torch.get_default_dtype()
    # An 8B shape in float32 would not fit beside itself.
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    with device:
        base = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    spec = LoraSpec(rank=32, alpha=4.0, targets=["q_proj", "k_proj", "v_proj"])
    return attach_lora(base, spec, where="benchmark").train()


def _rows(batch, tokens, vocabulary, seed):
    drawn = torch.Generator().manual_seed(seed)
    rows = []
    for at in range(batch):
        length = tokens - at * tokens // (2 * batch)
        ids = torch.randint(3, vocabulary, (length,), generator=drawn).tolist()
        rows.append(EncodedSample(tuple(ids), num_prompt=length // 2))
    return collate(rows)


def _print_row(name, place, row):
    print(
        f"{name:<12}{place:<10}{row['gb_s']:>8.2f}{row['of_a_copy']:>11.3f}"
        f"{_gib(row['peak_gib'])}",
        flush=True,
    )


def _gib(peak):
    return f"{'-':>10}" if peak is None else f"{peak:>10.2f}"


def _machine(device):
    if device.type == "cuda":
        return {**machine(), "gpu": torch.cuda.get_device_name(device)}
    return machine()


if __name__ == "__main__":
    main()
