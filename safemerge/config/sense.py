"""What no study can mean: directions against a metric's own, and values that a share never has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from safemerge.config.metric import Direction, Metric, measured_metrics
from safemerge.config.suite import SuiteSpec

if TYPE_CHECKING:
    from safemerge.config.study import Aggregate, Constraint, Objective

_BETTER = {"maximize": "higher", "minimize": "lower"}


def sense_problems(
    suites: Sequence[SuiteSpec],
    aggregates: Mapping[str, Aggregate],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
) -> Iterator[str]:
    """Yield what is senseless about means, goals and limits, one line each.

    Args:
        suites: The study's suites.
        aggregates: Its aggregates, by name.
        objectives: Its objectives.
        constraints: Its constraints.
    """
    rows = measured_metrics(suites, aggregates)
    opposite = set()
    for name, aggregate in aggregates.items():
        parts = [rows[part] for part in aggregate.mean_of if part in rows]
        other = next((part for part in parts if part.direction != parts[0].direction), None)
        if other is not None:
            opposite.add(name)
            yield (
                f"aggregates.{name}.mean_of: must improve the same way; got {parts[0].name} "
                f"({parts[0].direction}) and {other.name} ({other.direction}). Drop one."
            )
    for index, goal in enumerate(objectives):
        where = f"objectives.{index}"
        if goal.metric in rows and goal.metric not in opposite:
            row = rows[goal.metric]
            if goal.direction != row.direction and "direction" not in goal.allow:
                yield _against(f"{where}.direction", row, goal.direction)
            if row.range is not None:
                yield from _reference_problems(f"{where}.reference", goal, row.range)
    for index, limit in enumerate(constraints):
        where = f"constraints.{index}"
        if limit.metric in rows and limit.metric not in opposite:
            row = rows[limit.metric]
            if limit.direction != row.direction and "direction" not in limit.allow:
                yield _against(f"{where}.direction", row, limit.direction)
            if row.range is not None and not row.range[0] <= limit.budget <= row.range[1]:
                yield _outside(f"{where}.budget", row.name, limit.budget)


def _against(where: str, row: Metric, got: Direction) -> str:
    return (
        f"{where}: must be {row.direction}, for a {_BETTER[row.direction]} {row.name} is better; "
        f"got {got}. If it is meant, say allow: [direction] beside it."
    )


def _reference_problems(where: str, goal: Objective, limits: tuple[float, float]) -> Iterator[str]:
    low, high = limits
    best, worst = (high, low) if goal.direction == "maximize" else (low, high)
    if not low <= goal.reference <= high:
        yield _outside(where, goal.metric, goal.reference)
    elif goal.reference == best:
        yield (
            f"{where}: must be worse than any point worth keeping; got {goal.reference:g}, the "
            f"best value that {goal.metric} can have. Write {worst:g}."
        )


def _outside(where: str, metric: str, value: float) -> str:
    advice = f", e.g. {value / 100:g} for {value:g} %" if 1.0 < value <= 100.0 else ""
    return (
        f"{where}: must be in [0, 1], for {metric} is a share; got {value:g}. "
        f"Write a fraction{advice}."
    )
