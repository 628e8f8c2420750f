"""In which unit a metric is told: a share in percent, or a plain number such as a perplexity."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from safemerge.config.suite import LmEval, Task, task_metrics

Unit = Literal["share", "number"]
"""Share: a fraction in [0, 1], told in percent. Number: told as it is."""

HARNESS_SHARES = frozenset(
    {
        "acc",
        "acc_all",
        "acc_bytes",
        "acc_mutual_info",
        "acc_norm",
        "em",
        "exact_match",
        "f1",
        "pass@1",
        "pass_at_1",
        "prompt_level_loose_acc",
        "prompt_level_strict_acc",
        "inst_level_loose_acc",
        "inst_level_strict_acc",
    }
)
"""Metrics of lm-evaluation-harness that are shares; any other may have another range."""


def task_units(task: Task) -> dict[str, Unit]:
    """Return the unit of each of a task's metrics, by name within the suite."""
    if isinstance(task, LmEval):
        return {name: harness_unit(name) for name in task.metrics}
    return dict.fromkeys(task_metrics(task), "share")


def harness_unit(metric: str) -> Unit:
    """Return the unit of a metric of lm-evaluation-harness, by its name there."""
    return "share" if metric in HARNESS_SHARES else "number"


def joint_unit(units: Iterable[Unit]) -> Unit:
    """Return the unit of a mean: a share if all of its parts are."""
    return "share" if all(unit == "share" for unit in units) else "number"
