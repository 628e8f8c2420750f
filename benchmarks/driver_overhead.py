"""What the driver costs: CPU and memory a trial, by how many trials are finished already.

    python benchmarks/driver_overhead.py --trials 100,1000,10000 --samplers random,tpe

Each row is a process of its own. It writes a run with that many finished trials of an analytic
landscape, each with a score for every prompt, opens it as `--resume` does, and continues for some
trials with what Ray Tune's searcher calls for each: `done`, `ask`, `known_result`, `tell`. No
engine and no Ray take part: what is left is the driver's own work, by CPU time of the process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from safemerge.config.study import StudySpec
from safemerge.records import CandidateResult, Score, TrialRecord
from safemerge.search import SearchStudy
from safemerge.search.space import recipe_at
from safemerge.store import RunStore
from safemerge.testing.landscapes import ACCURACY, HARM, SMOOTH, landscape_study

SAMPLED = 60
"""Trials that are measured."""


def study(parameters: int, num_trials: int, sampler: str, storage: str | None) -> StudySpec:
    """Return a study of the landscape; beyond two parameters they are further lambdas."""
    document: dict[str, Any] = {"sampler": {"name": sampler}, "num_trials": num_trials}
    if storage is not None:
        document["storage"] = storage
    space = landscape_study().resolved()["spaces"][0]
    if parameters > 2:
        space["vary"]["method.lambda"] = {"low": 0.5, "high": 1.0}
    if parameters > 3:
        anchors = parameters // 2
        space["method"]["weights"] = {name: [0.5] * anchors for name in ("skill", "safety")}
        space["vary"] = {
            f"method.weights.{name}.{index}": {"low": 0.0, "high": 1.0}
            for name in ("skill", "safety")
            for index in range(anchors)
        }
    return landscape_study(spaces=[space], references=False, **document)


def measured(spec: StudySpec, recipe: Any, rng: np.random.Generator, prompts: int) -> Any:
    """Return a recipe's result with a score for each prompt, as an evaluator's has them."""
    method = recipe.method
    weights = {name: float(np.mean(value)) for name, value in method.weights.items()}
    plain = method.model_copy(update={"weights": weights})
    found = SMOOTH.evaluate(recipe.model_copy(update={"method": plain}))
    metrics, scores = {}, {}
    for metric, name in ((ACCURACY, "accuracy"), (HARM, "harmful_score")):
        draws = rng.random(prompts) < found.value(metric)
        suite = metric.partition(".")[0]
        value = float(draws.mean())
        metrics[metric] = found.metrics[metric].model_copy(update={"value": value, "n": prompts})
        scores[suite] = [
            Score(sample_id=f"{suite}-{index:04d}", values={name: float(draw)})
            for index, draw in enumerate(draws)
        ]
    return CandidateResult(candidate=recipe.digest, split="search", metrics=metrics, scores=scores)


def write_run(folder: Path, spec: StudySpec, trials: int, prompts: int) -> RunStore:
    """Write a run with some finished trials, drawn at random."""
    store = RunStore(folder).create(spec)
    rng = np.random.default_rng(0)
    space = spec.spaces[0]
    with store.trials_path.open("w") as lines:
        for number in range(trials):
            params = {
                path: item.low + rng.random() * (item.high - item.low)
                for path, item in space.vary.items()
            }
            recipe = recipe_at(spec, space, params)
            result = measured(spec, recipe, rng, prompts)
            record = TrialRecord(
                number=number,
                role="sampled",
                label=f"trial {number}",
                state="COMPLETE",
                space=space.name,
                params=params,
                recipe=recipe.resolved(),
                candidate=recipe.digest,
                feasible=True,
                result=result,
                objectives={name: item.value for name, item in result.metrics.items()},
                started_at="2026-01-01T00:00:00.000+00:00",
                finished_at="2026-01-01T00:00:01.000+00:00",
            )
            lines.write(record.model_dump_json() + "\n")
    return store


def run(options: dict[str, Any], folder: str, pipe: Any) -> None:
    """Measure one row; answers through a pipe."""
    spec = study(
        options["parameters"], options["trials"] + SAMPLED, options["sampler"], options["storage"]
    )
    path = Path(folder) / "run"
    if not options["open"]:
        write_run(path, spec, options["trials"], options["prompts"])
        pipe.send({})
        return
    rng = np.random.default_rng(1)
    before = _rss_mib()
    began, wall = time.process_time(), time.perf_counter()
    opened = SearchStudy(spec, RunStore.open(path))
    row = {"open_cpu_s": time.process_time() - began, "open_s": time.perf_counter() - wall}
    spent = logged = 0.0
    for _ in range(options["sampled"]):
        began = time.process_time()
        assert not opened.done
        proposal = opened.ask()
        opened.known_result(proposal.candidate)
        spent += time.process_time() - began
        result = measured(spec, proposal.recipe, rng, options["prompts"])
        began = time.process_time()
        opened.tell(proposal.number, result)
        spent += time.process_time() - began
        began = time.process_time()
        opened.front()
        opened.hypervolume()
        logged += time.process_time() - began
    began = time.process_time()
    opened.close()
    row |= {
        "cpu_ms": 1000 * spent / options["sampled"],
        "front_ms": 1000 * logged / options["sampled"],
        "close_cpu_s": time.process_time() - began,
        "memory_mib": _rss_mib(),
        "memory_gained_mib": _rss_mib() - before,
    }
    pipe.send(row)


def _rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _in_process(options: dict[str, Any], folder: str) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run, args=(options, folder, theirs))
    process.start()
    theirs.close()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def main() -> None:
    """Print a row for each sampler and number of finished trials."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", default="100,1000,10000", help="finished before")
    parser.add_argument("--samplers", default="random,tpe")
    parser.add_argument("--parameters", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=64, help="of each of the two suites")
    parser.add_argument("--sampled", type=int, default=SAMPLED, help="trials measured a row")
    parser.add_argument("--storage", help="Optuna's; the default's if left out")
    parser.add_argument("--json", type=Path, help="write all figures here")
    asked = parser.parse_args()
    rows = []
    print(
        f"{'sampler':<10}{'finished':>9}{'CPU ms/trial':>14}{'front ms':>10}{'open CPU s':>12}"
        f"{'close CPU s':>13}{'peak MiB':>10}{'gained':>8}"
    )
    for trials in map(int, asked.trials.split(",")):
        for sampler in asked.samplers.split(","):
            options = {**vars(asked), "trials": trials, "sampler": sampler, "json": None}
            with tempfile.TemporaryDirectory() as folder:
                _in_process({**options, "open": False}, folder)
                row = _in_process({**options, "open": True}, folder)
            rows.append({**options, **row})
            print(
                f"{sampler:<10}{trials:>9}{row['cpu_ms']:>14.1f}{row['front_ms']:>10.1f}"
                f"{row['open_cpu_s']:>12.2f}{row['close_cpu_s']:>13.2f}"
                f"{row['memory_mib']:>10.0f}{row['memory_gained_mib']:>8.0f}",
                flush=True,
            )
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
