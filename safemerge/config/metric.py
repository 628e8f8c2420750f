"""The table of metrics: what each one means, whatever it is called.

Reports, exports, picks, checks of goals and limits, and defaults read a metric's direction, role,
unit and range here, and never from its name. A row comes from what makes the metric: a kind of
task, a task of lm-evaluation-harness, an aggregate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from safemerge.config.study import Aggregate, StudySpec
    from safemerge.config.suite import SuiteSpec

Direction = Literal["maximize", "minimize"]
Role = Literal["skill", "harm", "over-refusal", "coherence", "loss"]
"""What a metric is about. ``harm`` is of answers to unsafe requests, refusing them included;
``loss`` is a cross-entropy of given answers."""
Unit = Literal["share", "number"]
"""Share: a fraction in [0, 1], printed in percent with one decimal. Number: printed as it is, at
four significant digits."""
Use = Literal["objective", "constraint", "other"]


@dataclass(frozen=True)
class Metric:
    """One metric: a row of the table."""

    name: str
    """Within its suite, e.g. ``accuracy``; in a study ``suite.metric``, or an aggregate's name."""
    direction: Direction
    """Which way is better."""
    role: Role | None
    """None for an aggregate of several roles that does not say its own."""
    unit: Unit = "share"
    summary: str = ""
    """What is measured, in a sentence."""
    is_main: bool = True
    """Whether it is what its suite is there to measure; the others are read beside it."""
    broken_above: float | None = None
    """Above this value a candidate counts as broken."""
    use: Use = "other"
    """What the study does with it."""
    mean_of: tuple[str, ...] = ()
    """Parts of an aggregate, by full name; empty for a plain metric."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What an aggregate is the mean of; the name itself for a plain metric."""
        return self.mean_of or (self.name,)

    @property
    def range(self) -> tuple[float, float] | None:
        """The values that it can have; None where they have no known ends."""
        return (0.0, 1.0) if self.unit == "share" else None

    @property
    def worst(self) -> float | None:
        """The worst value that it can have, the default reference; None without a range."""
        if self.range is None:
            return None
        return self.range[0 if self.direction == "maximize" else 1]

    @property
    def sign(self) -> str:
        """What a table's head or an axis adds to the name: ``" %"`` for shares."""
        return " %" if self.unit == "share" else ""

    @property
    def scale(self) -> float:
        """By what its values are multiplied where they are printed."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def is_side(self) -> bool:
        """Whether it is read beside any objective: safety by refusing everything shows here."""
        return not self.mean_of and (self.role == "over-refusal" or self.broken_above is not None)


_ACCURACY = Metric("accuracy", "maximize", "skill", summary="Share of right answers.")
_INCOHERENT = Metric(
    "incoherent_rate",
    "minimize",
    "coherence",
    summary="Share of answers that are empty or repeat themselves degenerately.",
    is_main=False,
    broken_above=0.5,
)

TASK_METRICS: dict[str, tuple[Metric, ...]] = {
    "classification": (_ACCURACY,),
    "exact_match": (_ACCURACY,),
    "numeric": (_ACCURACY,),
    "choice": (
        _ACCURACY,
        Metric(
            "gold_probability",
            "maximize",
            "skill",
            summary="Mean probability of the right ending among the endings.",
            is_main=False,
        ),
    ),
    "harm": (
        Metric(
            "harmful_score",
            "minimize",
            "harm",
            summary="Share of answers that the judge flags, or their mean harm.",
        ),
        Metric(
            "refusal_rate",
            "maximize",
            "harm",
            summary="Share of answers that refuse.",
            is_main=False,
        ),
        Metric(
            "complied_rate",
            "minimize",
            "harm",
            summary="Share of answers that do what was asked.",
            is_main=False,
        ),
        Metric(
            "other_rate",
            "minimize",
            "coherence",
            summary="Share of answers that neither refuse nor comply.",
            is_main=False,
        ),
        _INCOHERENT,
    ),
    "over_refusal": (
        Metric(
            "over_refusal_rate",
            "minimize",
            "over-refusal",
            summary="Share of benign requests that are refused.",
        ),
        _INCOHERENT,
    ),
}
"""Metrics of each kind of task but lm_eval, in the order of results."""

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


def harness_metric(name: str, direction: Direction) -> Metric:
    """Return the row of a metric of lm-evaluation-harness, by its name there."""
    unit: Unit = "share" if name in HARNESS_SHARES else "number"
    return Metric(name, direction, "skill", unit, "A metric of lm-evaluation-harness.")


def suite_metrics(suites: Sequence[SuiteSpec]) -> dict[str, Metric]:
    """Return the metrics of suites by full name, ``suite.metric``."""
    rows = [
        replace(metric, name=f"{suite.name}.{metric.name}")
        for suite in suites
        for metric in suite.measures
    ]
    return {row.name: row for row in rows}


def measured_metrics(
    suites: Sequence[SuiteSpec], aggregates: Mapping[str, Aggregate]
) -> dict[str, Metric]:
    """Return the metrics that suites and aggregates give, by full name.

    An aggregate has the direction, and is a share, if all of its parts are; so is its role, unless
    it says its own. Parts that are unknown are left out: whoever checks the study names them.
    """
    found = suite_metrics(suites)
    for name, aggregate in aggregates.items():
        parts = [found[part] for part in aggregate.mean_of if part in found]
        if parts:
            roles = {part.role for part in parts}
            found[name] = Metric(
                name,
                parts[0].direction,
                aggregate.role or (roles.pop() if len(roles) == 1 else None),
                joint_unit([part.unit for part in parts]),
                f"Mean of {', '.join(aggregate.mean_of)}.",
                mean_of=tuple(aggregate.mean_of),
            )
    return found


def metrics_of(spec: StudySpec) -> dict[str, Metric]:
    """Return every metric of a study by name: objectives, then constraints, then the rest.

    Args:
        spec: The study.

    Returns:
        Metric by full name, aggregates included, each with its use. An objective's direction is
        the study's.
    """
    known = measured_metrics(spec.suites, spec.aggregates)
    goals = {item.metric: item.direction for item in spec.objectives}
    limits = {item.metric for item in spec.constraints}

    def used(row: Metric) -> Metric:
        if row.name in goals:
            return replace(row, use="objective", direction=goals[row.name])
        return replace(row, use="constraint") if row.name in limits else row

    ordered = [*goals, *(item.metric for item in spec.constraints), *known]
    return {name: used(known[name]) for name in dict.fromkeys(ordered)}


def joint_unit(units: Sequence[Unit]) -> Unit:
    """Return the unit of a mean: a share if all of its parts are."""
    return "share" if all(unit == "share" for unit in units) else "number"
