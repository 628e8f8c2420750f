"""What no study can mean: directions against a metric's own, and values that a share never has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from safemerge.config.suite import Direction, SuiteSpec, task_metrics
from safemerge.config.unit import Unit, joint_unit, task_units

if TYPE_CHECKING:
    from safemerge.config.study import Aggregate, Constraint, Objective

_BETTER = {"maximize": "higher", "minimize": "lower"}


def sense_problems(
    suites: Sequence[SuiteSpec],
    aggregates: Mapping[str, Aggregate],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
) -> Iterator[str]:
    """Yield what is senseless about goals and limits, one line each.

    Args:
        suites: The study's suites.
        aggregates: Its aggregates, by name.
        objectives: Its objectives.
        constraints: Its constraints.
    """
    directions: dict[str, Direction] = {}
    units: dict[str, Unit] = {}
    for suite in suites:
        directions |= {f"{suite.name}.{key}": way for key, way in task_metrics(suite.task).items()}
        units |= {f"{suite.name}.{key}": unit for key, unit in task_units(suite.task).items()}
    for name, aggregate in aggregates.items():
        parts = [part for part in aggregate.mean_of if part in directions]
        # NOTE: of parts that improve opposite ways nothing can be said.
        if len({directions[part] for part in parts}) == 1:
            directions[name] = directions[parts[0]]
            units[name] = joint_unit(units[part] for part in parts)
    for index, goal in enumerate(objectives):
        where = f"objectives.{index}"
        if goal.metric not in directions:
            continue
        if goal.direction != directions[goal.metric] and "direction" not in goal.allow:
            yield _against(f"{where}.direction", goal.metric, goal.direction, directions)
        if units[goal.metric] == "share":
            yield from _reference_problems(f"{where}.reference", goal)
    for index, limit in enumerate(constraints):
        where = f"constraints.{index}"
        if limit.metric not in directions:
            continue
        if limit.direction != directions[limit.metric] and "direction" not in limit.allow:
            yield _against(f"{where}.direction", limit.metric, limit.direction, directions)
        if units[limit.metric] == "share" and not 0.0 <= limit.budget <= 1.0:
            yield (
                f"{where}.budget: must be in [0, 1], for {limit.metric} is a share; got "
                f"{limit.budget:g}. {_fraction(limit.budget)}"
            )


def _against(where: str, metric: str, got: Direction, directions: Mapping[str, Direction]) -> str:
    own = directions[metric]
    return (
        f"{where}: must be {own}, for a {_BETTER[own]} {metric} is better; got {got}. If it is "
        "meant, say allow: [direction] beside it."
    )


def _reference_problems(where: str, goal: Objective) -> Iterator[str]:
    if not 0.0 <= goal.reference <= 1.0:
        yield (
            f"{where}: must be in [0, 1], for {goal.metric} is a share; got {goal.reference:g}. "
            f"{_fraction(goal.reference)}"
        )
    elif goal.reference == (1.0 if goal.direction == "maximize" else 0.0):
        yield (
            f"{where}: must be worse than any point worth keeping; got {goal.reference:g}, the "
            f"best value that {goal.metric} can have. Write {1.0 - goal.reference:g}."
        )


def _fraction(value: float) -> str:
    if 1.0 < value <= 100.0:
        return f"Write a fraction, e.g. {value / 100:g} for {value:g} %."
    return "Write a fraction."
