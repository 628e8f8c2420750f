"""Candidates a second over 1 to 64 replicas of a fixed latency, against linear.

    python benchmarks/scaling.py [--replicas 1 2 4 8] [--latency 2] [--json FILE]

Real Ray Serve, Ray Tune and Optuna; only the engine is a fake: a replica waits for the latency and
answers with the scores of a landscape, without torch, so that many fit one machine. What is left
is what safemerge itself costs a candidate: the driver, the clients, Serve's queue. Counted from
the first finished candidate to the last, so that starting clients is outside; the last round, in
which replicas run out of candidates, is inside.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from pathlib import Path

from machine import machine, save

from safemerge.config.recipe import MergeRecipe
from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.search import search_round
from safemerge.distributed.serving import Application, EngineReplica
from safemerge.distributed.trainable import DEPLOYMENT
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.landscapes import SMOOTH, landscape_study

APP = "safemerge-scaling"


class FixedLatency(EngineReplica):
    """A replica that takes as long for every candidate."""

    def __init__(self, latency, evaluator):
        super().__init__(evaluator, what="replica", request="a candidate")
        self._latency = latency

    async def score(self, recipe, split):
        with self.busy():
            await asyncio.sleep(self._latency)
        return SMOOTH.evaluate(MergeRecipe.model_validate_json(recipe), split)

    def close_engine(self):
        """There is none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--latency", type=float, default=2.0, help="seconds a candidate")
    parser.add_argument("--rounds", type=int, default=10, help="candidates a replica")
    parser.add_argument("--sampler", default="random", help="its time is the driver's")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()
    rows = []
    print(f"{'replicas':>8}{'candidates/s':>14}{'of linear':>11}{'driver CPU ms':>15}{'MiB':>7}")
    for count in options.replicas:
        rows.append(_searched(count, options))
        row = rows[-1]
        print(
            f"{count:>8}{row['candidates_s']:>14.2f}{row['of_linear']:>11.2f}"
            f"{row['driver_ms']:>15.1f}{row['driver_mib']:>7.0f}",
            flush=True,
        )
    if options.json:
        asked = {name: value for name, value in vars(options).items() if name != "json"}
        save(options.json, {"machine": machine(), "options": asked, "rows": rows})


def _searched(count, options):
    """One search over some replicas."""
    evaluator = {
        "engine": "transformers",
        "min_replicas": count,
        "max_replicas": count,
        "cpus_per_replica": 0.01,
    }
    spec = landscape_study(
        num_trials=max(20, count * options.rounds),
        evaluator=evaluator,
        sampler={"name": options.sampler},
    )
    ends, spent = [], []

    def heard(record, study):
        ends.append(time.perf_counter())
        spent.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        store = RunStore(Path(folder) / "run").create(spec)
        replicas = Application(
            FixedLatency,
            *(options.latency, spec.evaluator),
            app=APP,
            deployment=DEPLOYMENT,
            what="scaling",
            evaluator=spec.evaluator,
        )
        with replicas, SearchStudy(spec, store) as study:
            search_round(study, app=APP, on_record=heard)
    done = len(ends) - 1
    seconds, worked = ends[-1] - ends[0], spent[-1] - spent[0]
    return {
        "replicas": count,
        "candidates": done,
        "candidates_s": done / seconds,
        "of_linear": done / seconds * options.latency / count,
        "driver_ms": 1000 * worked / done,
        "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


if __name__ == "__main__":
    main()
