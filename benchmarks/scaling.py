"""Candidates a second over 1 to 64 replicas of a fixed latency, against linear.

    python benchmarks/scaling.py [--replicas 1 2 4 8] [--latency 2] [--json FILE]

Real Ray Serve, Ray Tune and Optuna; only the engine is a fake: a replica waits for the latency and
answers with the scores of a landscape, without torch, so that many fit one machine. What is left
is what safemerge itself costs a candidate: the driver, the clients, Serve's queue. Counted are
whole rounds once every client has finished a candidate, so that starting clients is outside, and
the last round, in which replicas run out of candidates, too.

CPU is that of each kind of process between the same two moments, by candidate; memory is the
proportional set size (shared pages are divided among their users) of one process at the end.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from machine import machine, save

from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.search import search_round
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from safemerge.testing.fixed_latency import fixed_latency_application
from safemerge.testing.landscapes import landscape_study

APP = "safemerge-scaling"

KINDS = {
    "ray::ServeReplica": "replica",
    "ray::ImplicitFunc": "client",
    "ray::CandidateTrainable": "client",
    "ray::ServeController": "controller",
    "gcs_server": "gcs",
    "raylet": "raylet",
}
"""Kind of process by the beginning of its title or name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--latency", type=float, default=2.0, help="seconds a candidate")
    parser.add_argument("--rounds", type=int, default=10, help="counted candidates a replica")
    parser.add_argument("--warm", type=int, default=2, help="candidates a client before them")
    parser.add_argument("--sampler", default="random", help="its time is the driver's")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers as JSON")
    options = parser.parse_args()
    rows = []
    print(f"{'replicas':>8}{'candidates/s':>14}{'of linear':>11}{'driver CPU ms':>15}{'all':>7}")
    for count in options.replicas:
        rows.append(_searched(count, options))
        row = rows[-1]
        print(
            f"{count:>8}{row['candidates_s']:>14.2f}{row['of_linear']:>11.2f}"
            f"{row['cpu_ms']['driver']:>15.1f}{sum(row['cpu_ms'].values()):>7.1f}",
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
    clients, rounds = count + 1, options.rounds
    # Clients start while the first candidates are answered; a candidate more for each of them,
    # and the last round in which replicas run dry.
    before, counted = options.warm * clients, rounds * count
    spec = landscape_study(
        num_trials=before + counted + clients,
        evaluator=evaluator,
        sampler={"name": options.sampler},
    )
    moments, ends = [], []

    def heard(record, study):
        ends.append(time.perf_counter())
        if len(ends) in (before, before + counted):
            moments.append(_Moment())

    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        store = RunStore(Path(folder) / "run").create(spec)
        with (
            fixed_latency_application(spec.evaluator, app=APP, latency_s=options.latency),
            SearchStudy(spec, store) as study,
        ):
            search_round(study, app=APP, on_record=heard)
    seconds = ends[before + counted - 1] - ends[before - 1]
    first, last = moments
    rate = counted / seconds
    return {
        "replicas": count,
        "candidates": counted,
        "candidates_s": rate,
        "of_linear": rate * options.latency / count,
        "cpu_ms": {kind: 1000 * s / counted for kind, s in last.since(first).items()},
        "mib": dict(sorted(last.mib.items())),
        "driver_growth_kib": 1024 * (last.mib["driver"] - first.mib["driver"]) / counted,
        "load_average": last.load,
    }


class _Moment:
    """CPU seconds of every process of the search so far, and its kind and memory."""

    def __init__(self):
        self.cpu_s, self.kinds, self.mib, self.load = {}, {}, {}, os.getloadavg()[0]
        driver = psutil.Process()
        for process in (driver, *driver.children(recursive=True)):
            kind = "driver" if process == driver else _kind(process)
            try:
                times = process.cpu_times()
                if kind not in self.mib:
                    self.mib[kind] = process.memory_full_info().pss / 2**20
            except psutil.NoSuchProcess:
                continue
            self.cpu_s[process.pid], self.kinds[process.pid] = times.user + times.system, kind

    def since(self, other):
        """CPU seconds since another moment by kind, as a process is called now."""
        spent = Counter()
        for pid, seconds in self.cpu_s.items():
            spent[self.kinds[pid]] += seconds - other.cpu_s.get(pid, 0.0)
        return dict(sorted(spent.items()))


def _kind(process):
    """What a process of the cluster is; `other` for agents and the like."""
    try:
        told = [process.name(), *process.cmdline()[:1]]
    except psutil.NoSuchProcess:
        return "other"
    found = (kind for start, kind in KINDS.items() if any(it.startswith(start) for it in told))
    return next(found, "other")


if __name__ == "__main__":
    main()
