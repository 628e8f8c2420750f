"""Time from recipe to scores, three ways, on the same merge and the same prompts, in one run.

(a) swap: our live engine takes the recipe and merges into its running weights;
(b) eager: the merge is written to disk and a new engine is started with ``enforce_eager``;
(c) default: the same with vLLM's own engine defaults (what mergekit-evolve's vLLM mode does).

    .venv/bin/python benchmarks/candidate_turnaround.py [--rounds 3] [--json FILE]

Uses the demo's checkpoints (run ``make demo`` first). Each way is split into merge, load, start,
generate, score and teardown; the ratios printed at the end are the claim, not the seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from machine import machine, save

CORE = "0"
PROMPTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="candidates per way (default 3)")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    parser.add_argument("--skip-default", action="store_true", help="leave way (c) out")
    options = parser.parse_args()

    spec, prepared = _demo()
    recipes = _recipes(spec, options.rounds)
    ways = {"swap": _swap(spec, prepared, recipes)}
    ways["eager"] = [_fresh(spec, prepared, recipe, eager=True) for recipe in recipes]
    if not options.skip_default:
        ways["default"] = [_fresh(spec, prepared, recipe, eager=False) for recipe in recipes[:1]]
    _print(ways, prepared.num_prompts)
    if options.json:
        told = {"machine": machine() | {"engine_cores": 1}, "prompts": prepared.num_prompts}
        save(options.json, told | {"seconds": ways})


def _demo():
    """The demo's study with its cached checkpoints, and a 64-prompt suite of its prompts."""
    from safemerge.api.declared import load_study
    from safemerge.api.prepare import resolve_study
    from safemerge.commands.console import Console
    from safemerge.data.suite import LoadedSuite, load_suites
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.engines.chat import ChatFormat
    from safemerge.evaluation import prepare_split

    spec = load_study("search_spaces/demo.yaml").spec
    with ray_cluster():
        spec = resolve_study(spec, Console())
    suites = []
    left = PROMPTS
    for suite in load_suites(spec)["search"]:
        taken = suite.samples[: PROMPTS // 4]
        left -= len(taken)
        suites.append(LoadedSuite(suite.name, suite.task, suite.split, taken))
    assert left == 0, f"the suite must hold {PROMPTS} prompts"
    chat = ChatFormat(str(spec.base.path))
    return spec, prepare_split(suites, chat, max_model_len=spec.evaluator.max_model_len)


def _recipes(spec, count):
    from safemerge.config.recipe import MergeRecipe, TaskArithmetic

    names = [expert.name for expert in spec.experts]
    return [
        MergeRecipe(
            base=spec.base,
            experts=spec.experts,
            method=TaskArithmetic(
                name="task_arithmetic",
                weights=dict(zip(names, (0.5 + 0.1 * i, 0.4, 0.3), strict=True)),
            ),
        )
        for i in range(count)
    ]


def _swap(spec, prepared, recipes):
    from safemerge.config.models import models_recipe
    from safemerge.engines.vllm_engine import VllmEngine
    from safemerge.evaluation import evaluate_candidate

    started = time.perf_counter()
    engine = VllmEngine(
        models_recipe(spec.base, spec.experts), spec.evaluator, cpu_ids=CORE, in_process=True
    )
    print(f"swap: engine start, once for a whole search: {time.perf_counter() - started:.1f} s")
    rows = []
    for recipe in recipes:
        result = evaluate_candidate(
            engine, recipe, prepared, aggregates=spec.aggregates, max_unscored=0.0
        )
        t = result.timings
        rows.append(_row(merge=t.swap_s, generate=t.generate_s, score=t.score_s))
    engine.close()
    return rows


def _fresh(spec, prepared, recipe, *, eager):
    """Merge to disk, start an engine on it, answer, score, tear down."""
    from safemerge.merge.resident import ResidentCheckpoints
    from safemerge.merge.writer import write_merged

    folder = Path(tempfile.mkdtemp(prefix="safemerge-bench-"))
    try:
        started = time.perf_counter()
        resident = ResidentCheckpoints.open(recipe, check=False)
        write_merged(recipe, resident.checkpoints, folder / "merged")
        merged = time.perf_counter()
        row = _answer_fresh(spec, prepared, folder / "merged", eager=eager)
        return row | {"merge": merged - started, "total": row["total"] + merged - started}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _answer_fresh(spec, prepared, folder, *, eager):
    for name in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        os.environ.pop(name, None)  # set by the live engine, which ran in this process
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_CPU_OMP_THREADS_BIND=CORE,
        VLLM_ENABLE_V1_MULTIPROCESSING="1",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    import torch
    from vllm import LLM, SamplingParams

    from safemerge.engines.precision import compute_dtype
    from safemerge.evaluation import _score
    from safemerge.records import Response

    cpu = not torch.cuda.is_available()
    dtype = compute_dtype(spec.evaluator.dtype, device="cpu" if cpu else "cuda")
    started = time.perf_counter()
    llm = LLM(
        model=str(folder),
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=spec.evaluator.max_model_len,
        enforce_eager=eager,
        **({"kv_cache_memory_bytes": int(spec.evaluator.kv_cache_gib * 2**30)} if cpu else {}),
    )
    up = time.perf_counter()
    prompts = [prompt for suite in prepared.prompts for prompt in suite]
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts],
        [
            SamplingParams(
                temperature=0.0,
                max_tokens=prompt.max_tokens,
                allowed_token_ids=list(prompt.allowed_ids) if prompt.allowed_ids else None,
            )
            for prompt in prompts
        ],
        use_tqdm=False,
    )
    generated = time.perf_counter()
    responses = [
        Response(
            sample_id=prompt.sample_id,
            text=output.outputs[0].text,
            num_tokens=len(output.outputs[0].token_ids),
            finished=True,
            candidate="fresh",
        )
        for prompt, output in zip(prompts, outputs, strict=True)
    ]
    _score(prepared, responses, [], spec.aggregates, 0.0)
    scored = time.perf_counter()
    llm.llm_engine.engine_core.shutdown()
    del llm
    down = time.perf_counter()
    return _row(
        start=up - started,
        generate=generated - up,
        score=scored - generated,
        teardown=down - scored,
    )


def _row(**parts):
    row = {"merge": 0.0, "start": 0.0, "generate": 0.0, "score": 0.0, "teardown": 0.0, **parts}
    return row | {"total": sum(row.values())}


def _print(ways, num_prompts):
    parts = list(ways["swap"][0])
    print(f"\n{num_prompts} prompts, median seconds a candidate ({machine()['cpu']})")
    print(f"{'way':<9}" + "".join(f"{part:>10}" for part in parts))
    median = {
        way: {part: statistics.median(row[part] for row in rows) for part in parts}
        for way, rows in ways.items()
    }
    for way, row in median.items():
        print(f"{way:<9}" + "".join(f"{row[part]:>10.2f}" for part in parts))
    outside = {way: row["total"] - row["generate"] for way, row in median.items()}
    print(
        f"\nswap: outside generation / generation = "
        f"{outside['swap'] / median['swap']['generate']:.3f} (goal at most 0.10)"
    )
    for way in list(median)[1:]:
        print(
            f"outside generation, {way} / swap = {outside[way] / outside['swap']:.1f} x"
            + (" (goal at least 25)" if way == "eager" else "")
        )
        print(
            f"whole candidate, {way} / swap = "
            f"{median[way]['total'] / median['swap']['total']:.1f} x"
        )


if __name__ == "__main__":
    main()
