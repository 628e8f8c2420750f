"""Questions a second through the evaluator, against the engines that do the work below it.

    .venv/bin/python benchmarks/evaluation_throughput.py [--rounds 5] [--json FILE]

Three workloads on SmolLM2-135M, each with its own Ray Serve evaluator of one replica:

- ``generate``: prompts with answers of up to 32 tokens, against plain vLLM's ``LLM.generate`` on
  the same token ids (goal: the evaluator reaches 0.95 of its pace);
- ``choose``: a two-shot multiple-choice task of lm-evaluation-harness (four options a question),
  against the harness's own transformers and vLLM backends;
- ``say``: a task of the harness that generates, against the same two.

Ways take turns, round after round, with prefix caches emptied before each; medians count. One
core an engine (one GPU, where there is one), float32 on CPUs. The evaluator's time runs from
request to scores, less the swap of weights, which the others do not do; its pace with the swap is
printed beside it. The harness's backends are timed over ``lm_eval.evaluator.evaluate``, which
writes and tokenises the prompts each time, and, under ``... requests``, over their work alone.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

CORE = "0"
MAX_MODEL_LEN = 512
MAX_TOKENS = 32
KV_GIB = 0.5
GPU_SHARE = 0.25
"""Of a GPU's memory, for each engine: two live side by side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds a way (default 5)")
    parser.add_argument("--prompts", type=int, default=192, help="to generate (default 192)")
    parser.add_argument("--documents", type=int, default=96, help="of a task (default 96)")
    parser.add_argument("--only", choices=list(WORKLOADS), help="one workload")
    parser.add_argument("--model", help="checkpoint folder (default: the demo's base)")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_CPU_OMP_THREADS_BIND=CORE,
    )
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.training.packaged_model import packaged_model

    model = options.model or str(packaged_model("smollm2-135m-instruct", say=print))
    found = {}
    with tempfile.TemporaryDirectory(prefix="safemerge-bench-") as folder, ray_cluster():
        for name, workload in WORKLOADS.items():
            if options.only in (None, name):
                found[name] = workload(model, Path(folder), options)
                _print(name, found[name])
    if options.json:
        told = {
            "machine": _machine(),
            "model": Path(model).name,
            "rounds": options.rounds,
            "workloads": found,
        }
        Path(options.json).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


# --- workloads --------------------------------------------------------------------------


def _generate(model, folder, options):
    rows = {
        "source": {"kind": "generator", "name": "reviews", "count": options.prompts},
        "prompt": "What is this review about, and what does its author feel?\n{prompt}",
        "label": "label",
    }
    suite = {
        "name": "generate",
        "task": {"kind": "exact_match", "max_tokens": MAX_TOKENS},
        "max_similarity": None,
        **{
            split: {**rows, "source": {**rows["source"], "split": split}}
            for split in ("search", "report")
        },
    }
    spec = _study(model, suite, metric="generate.accuracy")
    return _measure(spec, {"plain vllm": _PlainVllm(spec)}, options)


def _choose(model, folder, options):
    from safemerge.testing.lm_eval_tasks import PICK

    return _harness(model, folder, options, task=PICK, metric="acc")


def _say(model, folder, options):
    from safemerge.testing.lm_eval_tasks import SAY

    return _harness(model, folder, options, task=SAY, metric="exact_match", filter="first")


def _harness(model, folder, options, *, task, metric, **settings):
    from safemerge.testing.lm_eval_tasks import write_tasks

    tasks = write_tasks(folder / task, count=options.documents + 1)
    lm_eval = {
        "task": task, "metrics": {metric: "maximize"}, "include_path": str(tasks), **settings,
    }  # fmt: skip
    suite = {
        "name": task,
        "lm_eval": lm_eval,
        "max_similarity": None,
        "search": {"source": {"kind": "lm_eval", "stop": options.documents}},
        "report": {"source": {"kind": "lm_eval", "start": options.documents}},
    }
    spec = _study(model, suite, metric=f"{task}.{metric}")
    ways = {f"lm_eval {kind}": _HarnessBackend(spec, kind) for kind in ("hf", "vllm")}
    return _measure(spec, ways, options)


WORKLOADS = {"generate": _generate, "choose": _choose, "say": _say}


def _study(model, suite, *, metric):
    import torch

    from safemerge.config.document import parse_document
    from safemerge.config.study import StudySpec

    on_gpu = torch.cuda.is_available()
    document = {
        "name": "throughput",
        "base": {"name": "base", "path": model},
        "experts": [{"name": "same", "path": model}],
        "spaces": [
            {
                "name": "base",
                "method": {"name": "linear", "weights": {"base": 1.0, "same": 0.0}},
                "vary": {"method.weights.same": {"low": 0.0, "high": 1.0}},
            }
        ],
        "suites": [suite],
        "objectives": [{"metric": metric, "direction": "maximize", "reference": 0.0}],
        "num_trials": 1,
        "evaluator": {
            "max_model_len": MAX_MODEL_LEN,
            "kv_cache_gib": KV_GIB,
            "dtype": "auto" if on_gpu else "float32",
            "gpus_per_replica": 0.5 if on_gpu else 0.0,
            "gpu_memory_utilization": GPU_SHARE,
        },
    }
    return parse_document(document, StudySpec, where="benchmark")


def _base_recipe(spec):
    from safemerge.config.recipe import Linear, MergeRecipe

    return MergeRecipe(
        base=spec.base,
        experts=spec.experts,
        method=Linear(name="linear", weights={spec.base.name: 1.0}),
    )


# --- ways -------------------------------------------------------------------------------


def _engine_settings(spec):
    """The evaluator's own engine settings, so that only what is around the engine differs."""
    import torch

    from safemerge.engines.precision import compute_dtype
    from safemerge.engines.vllm_engine import CPU_BLOCK_TOKENS

    evaluator = spec.evaluator
    on_gpu = torch.cuda.is_available()
    dtype = compute_dtype(evaluator.dtype, device="cuda" if on_gpu else "cpu")
    on_cpu = {
        "enforce_eager": True,
        "block_size": CPU_BLOCK_TOKENS,
        "kv_cache_memory_bytes": int(evaluator.kv_cache_gib * 2**30),
    }
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": evaluator.max_model_len,
        "max_num_seqs": evaluator.max_num_seqs,
        "enable_prefix_caching": True,
        "seed": 0,
        **({"gpu_memory_utilization": GPU_SHARE} if on_gpu else on_cpu),
    }


class _PlainVllm:
    """``LLM.generate`` on the evaluator's token ids."""

    def __init__(self, spec):
        from vllm import LLM, SamplingParams

        from safemerge.data.suite import load_suites
        from safemerge.engines.chat import ChatFormat
        from safemerge.evaluation import prepare_split

        chat = ChatFormat(str(spec.base.path))
        prepared = prepare_split(
            load_suites(spec)["search"], chat, max_model_len=spec.evaluator.max_model_len
        )
        self.prompts = [prompt for prompts in prepared.prompts for prompt in prompts]
        self.params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
        self.llm = LLM(model=str(spec.base.path), **_engine_settings(spec))

    def run(self):
        self.llm.reset_prefix_cache()
        started = time.perf_counter()
        self.llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in self.prompts],
            self.params,
            use_tqdm=False,
        )
        return {"": time.perf_counter() - started}

    def close(self):
        self.llm.llm_engine.engine_core.shutdown()


class _HarnessBackend:
    """One of the harness's own backends on the evaluator's documents."""

    def __init__(self, spec, kind):
        from lm_eval.tasks import TaskManager

        from safemerge.data.suite import load_suites

        self.task = spec.suites[0].task
        (suite,) = load_suites(spec)["search"]
        # "task/INDEX:hash", see LmEvalTask.
        self.documents = [
            int(sample.sample_id.partition(":")[0].rpartition("/")[2]) for sample in suite.samples
        ]
        self.manager = TaskManager(include_path=self.task.include_path, include_defaults=False)
        self.kind = kind
        settings = _engine_settings(spec)
        if kind == "vllm":
            from lm_eval.models.vllm_causallms import VLLM

            self.model = VLLM(pretrained=str(spec.base.path), batch_size="auto", **settings)
        else:
            import torch
            from lm_eval.models.huggingface import HFLM

            if not torch.cuda.is_available():
                torch.set_num_threads(1)
            self.model = HFLM(
                pretrained=str(spec.base.path),
                dtype=settings["dtype"],
                device="cuda" if torch.cuda.is_available() else "cpu",
                batch_size=16,
                max_length=MAX_MODEL_LEN,
            )

    def run(self):
        from lm_eval import evaluator

        from safemerge.data.lm_eval_task import FEWSHOT_SEED

        if self.kind == "vllm":
            self.model.model.reset_prefix_cache()
        spent = {}
        with _timed_requests(self.model, spent), contextlib.redirect_stderr(io.StringIO()):
            loaded = self.manager.load([self.task.task])
            for task in loaded["tasks"].values():
                task.set_fewshot_seed(FEWSHOT_SEED)
            built = time.perf_counter()
            evaluator.evaluate(
                lm=self.model,
                task_dict=loaded,
                samples={self.task.task: self.documents},
                bootstrap_iters=0,
            )
        # Reading the data is left out: it is done once for all candidates here.
        return {"": time.perf_counter() - built, " requests": sum(spent.values())}

    def close(self):
        if self.kind == "vllm":
            self.model.model.llm_engine.engine_core.shutdown()


@contextlib.contextmanager
def _timed_requests(model, spent):
    """Sum up the seconds that a model of the harness spends on requests."""
    names = ("loglikelihood", "generate_until")

    def timed(name, call, requests):
        started = time.perf_counter()
        answers = call(requests)
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started
        return answers

    for name in names:
        setattr(model, name, functools.partial(timed, name, getattr(model, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


# --- measuring --------------------------------------------------------------------------


def _measure(spec, ways, options):
    """Seconds by way and round; a first round of each warms up and does not count."""
    from safemerge.distributed.evaluator import Evaluator

    recipe = _base_recipe(spec)
    seconds = {}
    with Evaluator(spec, app="safemerge-throughput") as evaluator:

        def through_evaluator():
            started = time.perf_counter()
            result = evaluator.score(recipe, "search")
            whole = time.perf_counter() - started
            return result.num_prompts, {"": whole - result.timings.swap_s, " with swap": whole}

        for number in range(options.rounds + 1):
            num_prompts, found = through_evaluator()
            rows = {"evaluator": found, **{name: way.run() for name, way in ways.items()}}
            for name, row in rows.items():
                for part, value in row.items():
                    if number:
                        seconds.setdefault(name + part, []).append(value)
    for way in ways.values():
        way.close()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "prompts": num_prompts,
        "seconds": seconds,
        "prompts_per_second": {name: num_prompts / value for name, value in median.items()},
        "evaluator_over": {
            name: value / median["evaluator"]
            for name, value in median.items()
            if not name.startswith("evaluator")
        },
    }


def _machine():
    import torch

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].split(":", 1)[1].strip() if names else model
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": model, "cores": os.cpu_count(), "engine_cores": 1, "gpu": gpu}


def _print(name, found):
    print(f"\n{name}: {found['prompts']} questions, medians ({_machine()['cpu']})")
    for way, pace in found["prompts_per_second"].items():
        spread = found["seconds"][way]
        print(f"  {way:<24}{pace:>9.2f} /s   {min(spread):.2f} to {max(spread):.2f} s")
    for way, ratio in found["evaluator_over"].items():
        goal = " (goal at least 0.95)" if way == "plain vllm" else ""
        print(f"  pace, evaluator / {way} = {ratio:.2f}{goal}")


if __name__ == "__main__":
    main()
