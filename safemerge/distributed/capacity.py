"""Room on a cluster: whether stages can be trained beside a running evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from safemerge.config.stage import WorkersSpec
from safemerge.config.study import StudySpec

_MANY = 64
"""More stages than anyone trains at once."""


class Room(NamedTuple):
    """Where stages are trained."""

    beside: bool
    """Whether there is room beside the evaluator's least replicas. If not, the evaluator makes
    room: it ends, stages are trained, and it is started again."""
    at_once: int
    """How many stages are trained side by side."""


def find_room(
    spec: StudySpec, workers: Sequence[WorkersSpec], nodes: Sequence[Mapping[str, float]]
) -> Room:
    """Say where stages can be trained.

    Args:
        spec: The study, for what its evaluator and its judges keep at least.
        workers: Workers of each stage, and of each gathering of statistics, that may be wanted.
        nodes: What each machine of the cluster has, as Ray tells it.
    """
    evaluator = spec.evaluator.placed(sum(node.get("GPU", 0.0) for node in nodes))
    service, replica = spec.judge_service, evaluator.replica_needs
    judge = {"CPU": service.cpus_per_replica, "GPU": service.gpus_per_replica}
    kept = [replica] * evaluator.min_replicas
    kept += [judge] * (service.min_replicas * len(spec.served_judges))

    def stages(left: Sequence[Mapping[str, float]]) -> int:
        return min((_num_stages(left, item) for item in workers), default=1)

    # Where Ray puts replicas is its own business: there is room if there is either way.
    beside = min(stages(_without(nodes, kept, spread=spread)) for spread in (True, False))
    return Room(True, beside) if beside else Room(False, max(1, stages(nodes)))


def _without(
    nodes: Sequence[Mapping[str, float]], kept: Sequence[Mapping[str, float]], *, spread: bool
) -> list[dict[str, float]]:
    """What is left of machines beside some actors, spread over them or packed."""
    left = [dict(node) for node in nodes]
    for need in kept:
        _place(left, need, spread=spread)
    return left


def _num_stages(nodes: Sequence[Mapping[str, float]], workers: WorkersSpec) -> int:
    """How many stages with such workers fit side by side."""
    left = [dict(node) for node in nodes]
    need = {"CPU": workers.cpus_per_worker, "GPU": workers.gpus_per_worker}
    count = 0
    while count < _MANY * workers.num_workers and _place(left, need, spread=True):
        count += 1
    return count // workers.num_workers


def _place(nodes: list[dict[str, float]], need: Mapping[str, float], *, spread: bool) -> bool:
    """Place an actor where there is most room for it, or least; return whether it found any."""
    fitting = [
        node
        for node in nodes
        if all(node.get(key, 0.0) + 1e-6 >= amount for key, amount in need.items())
    ]
    if not fitting:
        return False

    def room(node: dict[str, float]) -> tuple[float, ...]:
        return tuple(node.get(key, 0.0) for key in ("GPU", "CPU") if need[key])

    chosen = max(fitting, key=room) if spread else min(fitting, key=room)
    for key, amount in need.items():
        chosen[key] = chosen.get(key, 0.0) - amount
    return True
