"""A search on a cluster that grows for it and shrinks after it: replicas, nodes, queue over time.

    python benchmarks/autoscaling.py [--out results/autoscaling-published]

Ray's autoscaler, Serve's, Tune and Optuna are real; nodes are raylets on this machine (Ray's
`fake_multinode` provider) and engines wait a fixed time. The cluster begins with a head that has
no CPU; each node holds one replica. Writes `autoscaling.csv`, `.json` and `.png`.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import own_token  # noqa: F401  before Ray is imported
import ray
from machine import machine, save
from ray import serve

from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.request import DEPLOYMENT
from safemerge.distributed.search import search_round
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.fixed_latency import fixed_latency_application
from safemerge.testing.growing_cluster import growing_cluster
from safemerge.testing.landscapes import landscape_study

APP = "safemerge-autoscaling"
COLUMNS = ("second", "running", "starting", "stopping", "nodes", "waiting", "finished")
RATE_OVER_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-replicas", type=int, default=3)
    parser.add_argument("--trials", type=int, default=26)
    parser.add_argument("--latency", type=float, default=3.0, help="seconds a candidate")
    parser.add_argument("--start", type=float, default=3.0, help="seconds a replica starts")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds an idle node is kept")
    parser.add_argument("--downscale", type=float, default=12.0, help="downscale_delay_s")
    parser.add_argument("--after", type=float, default=60.0, help="most seconds watched after it")
    parser.add_argument("--out", type=Path, default=Path("results/autoscaling-published"))
    options = parser.parse_args()
    spec = landscape_study(
        num_trials=options.trials,
        sampler={"name": "random"},
        evaluator={
            "engine": "transformers",
            "min_replicas": 1,
            "max_replicas": options.max_replicas,
            "cpus_per_replica": 1.0,
            "upscale_delay_s": 2.0,
            "downscale_delay_s": options.downscale,
        },
    )
    watch = _Watch()
    with (
        growing_cluster(max_workers=options.max_replicas, idle_s=options.idle) as address,
        tempfile.TemporaryDirectory() as folder,
        _joined(address),
    ):
        watch.begin()
        store = RunStore(Path(folder) / "run").create(spec)
        evaluator = fixed_latency_application(
            spec.evaluator, app=APP, latency_s=options.latency, start_s=options.start
        )
        with evaluator, SearchStudy(spec, store) as study:
            watch.mark("search")
            watch.study = study
            search_round(study, app=APP, on_record=watch.heard)
            watch.mark("search ends")
            records = list(study.records)
            _wait(lambda: watch.rows[-1]["running"] == 1, options.after)
            _wait(lambda: watch.rows[-1]["nodes"] == 1, options.after)
            watch.mark("evaluator ends")
        _wait(lambda: watch.rows[-1]["nodes"] == 0, options.after)
        watch.end()
    failed = sum(record.state != "COMPLETE" for record in records)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "autoscaling.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, COLUMNS)
        rows.writeheader()
        rows.writerows(watch.rows)
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    document = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "options": asked,
        "moments": watch.moments,
        "candidates": len(records),
        "failed_or_tried_again": failed,
        "most_replicas": max(row["running"] for row in watch.rows),
        "most_nodes": max(row["nodes"] for row in watch.rows),
        "replicas_at_the_end": watch.rows[-1]["running"],
        "nodes_at_the_end": watch.rows[-1]["nodes"],
    }
    save(options.out / "autoscaling.json", document)
    _draw(watch, options.out / "autoscaling.png")


@contextmanager
def _joined(address):
    os.environ["RAY_ADDRESS"] = address
    with ray_cluster():
        yield


def _wait(ready, seconds):
    deadline = time.monotonic() + seconds
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.5)


class _Watch:
    """Looks at replicas, nodes and the queue twice a second."""

    def __init__(self):
        self.rows, self.moments, self._ends, self.study = [], {}, [], None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def begin(self):
        self._began = time.monotonic()
        self._look_once()
        self._thread.start()

    def end(self):
        self._over.set()
        self._thread.join()

    def mark(self, name):
        self.moments[name] = round(time.monotonic() - self._began, 1)

    def heard(self, record, study):
        self._ends.append(time.monotonic() - self._began)

    def rate(self, second):
        """Candidates a second over the time before."""
        over = min(second, RATE_OVER_S)
        return sum(second - over < end <= second for end in self._ends) / over if over else 0.0

    def _look(self):
        while not self._over.wait(0.5):
            self._look_once()

    def _look_once(self):
        second = round(time.monotonic() - self._began, 1)
        found = {}
        try:
            deployment = serve.status().applications[APP].deployments[DEPLOYMENT]
            for state, count in deployment.replica_states.items():
                found[str(getattr(state, "value", state))] = count
        except (KeyError, ray.exceptions.RayError):
            pass
        self.rows.append(
            {
                "second": second,
                "running": found.get("RUNNING", 0),
                "starting": found.get("STARTING", 0),
                "stopping": found.get("STOPPING", 0),
                "nodes": sum(node["Alive"] for node in ray.nodes()) - 1,  # without the head
                "waiting": 0 if self.study is None else len(self.study.in_flight),
                "finished": len(self._ends),
            }
        )


def _draw(watch, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = [row["second"] for row in watch.rows]
    figure, (counts, queue, rate) = pyplot.subplots(3, 1, sharex=True, figsize=(8, 6.5))
    for name, style in (("running", "-"), ("starting", ":"), ("stopping", "-.")):
        counts.step(
            seconds,
            [row[name] for row in watch.rows],
            style,
            label=f"replicas, {name}",
            where="post",
        )
    counts.step(seconds, [row["nodes"] for row in watch.rows], "--k", label="nodes", where="post")
    counts.set_ylabel("number")
    counts.legend(loc="upper right", fontsize="small")
    queue.step(seconds, [row["waiting"] for row in watch.rows], where="post")
    queue.set_ylabel("candidates in flight")
    rate.plot(seconds, [watch.rate(second) for second in seconds])
    rate.set_ylabel(f"candidates/s\n(last {RATE_OVER_S:g} s)")
    rate.set_xlabel("seconds")
    for axes in (counts, queue, rate):
        axes.grid(alpha=0.3)
        for name, second in watch.moments.items():
            axes.axvline(second, color="grey", linewidth=0.8)
            if axes is queue:
                axes.text(second, 0.3, f" {name}", rotation=90, fontsize="small", color="grey")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"figure: {path}")


if __name__ == "__main__":
    main()
