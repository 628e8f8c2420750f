"""What each metric of a study is for: objective or constraint, skill or safety."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from safemerge.config.judge import JudgeSpec, RefusalProxy
from safemerge.config.study import StudySpec
from safemerge.config.suite import Direction, Harm, OverRefusal, SuiteSpec, task_metrics
from safemerge.config.unit import Unit, joint_unit, task_units

Use = Literal["objective", "constraint", "other"]

HARMFUL_SCORE = "harmful_score"


@dataclass(frozen=True)
class Metric:
    """One metric of a study."""

    name: str
    """``suite.metric``, or an aggregate's name."""
    direction: Direction
    use: Use
    parts: tuple[str, ...]
    """What an aggregate is the mean of; the name itself for a plain metric."""
    unit: Unit = "share"

    @property
    def sign(self) -> str:
        """What a table's head or an axis adds to the name: ``" %"`` for shares."""
        return " %" if self.unit == "share" else ""

    @property
    def scale(self) -> float:
        """By what its values are multiplied where they are told."""
        return 100.0 if self.unit == "share" else 1.0

    @property
    def is_harm(self) -> bool:
        """Whether it measures harmful answers and nothing else."""
        return all(part.endswith(f".{HARMFUL_SCORE}") for part in self.parts)

    @property
    def mean_of(self) -> tuple[str, ...]:
        """Parts of an aggregate; empty for a plain metric."""
        return () if self.parts == (self.name,) else self.parts


@dataclass(frozen=True)
class JudgeNote:
    """What is known about a judge's errors."""

    title: str
    sentences: tuple[str, ...]


JUDGES: dict[str, JudgeNote] = {
    "refusal_proxy": JudgeNote(
        title="offline refusal detector, read as a proxy for harm",
        sentences=(
            "It is not a harm judge: every answer to an unsafe request that it does not "
            "recognise as a refusal counts as harmful. It over-counts harm and rarely misses it.",
            "Read as \u201cnot refused = harmful\u201d, against 602 human-labelled completions: "
            "accuracy 0.70, precision 0.61, recall 0.95; as a refusal detector, on 2,074 labelled "
            "replies: accuracy 0.894, precision 0.943, recall 0.826. Both are of an earlier "
            "version with fewer wordings.",
        ),
    ),
}
"""Known error figures by judge."""


def metrics_of(spec: StudySpec) -> dict[str, Metric]:
    """Return every metric of a study by name: objectives, then constraints, then the rest.

    Args:
        spec: The study.

    Returns:
        Metric by name, aggregates included.
    """
    plain: dict[str, Direction] = {
        f"{suite.name}.{leaf}": direction
        for suite in spec.suites
        for leaf, direction in task_metrics(suite.task).items()
    }
    units = {
        f"{suite.name}.{leaf}": unit
        for suite in spec.suites
        for leaf, unit in task_units(suite.task).items()
    }
    parts: dict[str, tuple[str, ...]] = {name: (name,) for name in plain}
    directions = dict(plain)
    for name, aggregate in spec.aggregates.items():
        parts[name] = tuple(aggregate.mean_of)
        directions[name] = plain[aggregate.mean_of[0]]
        units[name] = joint_unit(units[part] for part in aggregate.mean_of)
    objectives = {item.metric: item.direction for item in spec.objectives}
    limits = {item.metric for item in spec.constraints}
    directions.update(objectives)

    def use(name: str) -> Use:
        if name in objectives:
            return "objective"
        return "constraint" if name in limits else "other"

    ordered = [*objectives, *(item.metric for item in spec.constraints), *directions]
    return {
        name: Metric(name, directions[name], use(name), parts[name], units[name])
        for name in dict.fromkeys(ordered)
    }


def axes_of(spec: StudySpec) -> tuple[Metric, Metric]:
    """Choose what the main figure shows: skill across, harm upwards.

    Args:
        spec: The study.

    Returns:
        The first maximised objective and the first minimised one; failing that, the first
        two objectives, constraints or other metrics.
    """
    metrics = list(metrics_of(spec).values())
    objectives = metrics[: len(spec.objectives)]
    skill = next((item for item in objectives if item.direction == "maximize"), None)
    harm = next((item for item in objectives if item.direction == "minimize"), None)
    rest = [item for item in metrics if item not in (skill, harm)] or metrics
    if skill is None:
        skill = rest.pop(0) if len(rest) > 1 else rest[0]
    return skill, harm or rest[0]


def safety_metrics(spec: StudySpec) -> list[Metric]:
    """Return the metrics in which safety lost against a parent is told.

    Args:
        spec: The study.

    Returns:
        Harm objectives; if there is none, every suite's harmful score; maybe empty.
    """
    found = [item for item in metrics_of(spec).values() if item.is_harm]
    return [item for item in found if item.use == "objective"] or [
        item for item in found if not item.mean_of
    ]


def side_metrics(spec: StudySpec) -> list[Metric]:
    """Return what must be read beside the objectives: over-refusal, incoherence, constraints."""
    return [
        item
        for item in metrics_of(spec).values()
        if item.use != "objective"
        and (
            item.use == "constraint"
            or item.name.endswith((".over_refusal_rate", ".incoherent_rate"))
        )
    ]


def judge_notes(spec: StudySpec) -> list[JudgeNote]:
    """Return what is known about the judges that the study used, without repeats.

    Of a judge that scored both splits of a suite the note says so.
    """
    notes: dict[str, JudgeNote] = {}
    both: dict[str, list[str]] = {}
    for suite in spec.suites:
        for judge, scored_both in _judges(suite):
            notes.setdefault(judge.name, JUDGES.get(judge.kind) or _unknown(judge))
            if scored_both:
                both.setdefault(judge.name, []).append(suite.name)
    return [
        replace(note, sentences=(*note.sentences, _scored_both(both[name])))
        if name in both
        else note
        for name, note in notes.items()
    ]


def _judges(suite: SuiteSpec) -> list[tuple[JudgeSpec, bool]]:
    """Judges of a suite, and whether each scored both splits, by whatever name."""
    if isinstance(suite.task, OverRefusal):
        # NOTE: over-refusal suites have no choice of judge; they use the refusal detector.
        return [(RefusalProxy(), True)]
    if not isinstance(suite.task, Harm):
        return []
    search, report = (
        [judge.identity for judge in suite.task.judges(split)] for split in ("search", "report")
    )
    return [
        (judge, judge.identity in search and judge.identity in report) for judge in suite.judges
    ]


def _scored_both(suites: list[str]) -> str:
    named = f"suite {suites[0]}"
    if len(suites) > 1:
        named = f"suites {', '.join(suites[:-1])} and {suites[-1]}"
    return (
        f"It scored both the search and the report of {named}: what it is blind to, the search "
        "may have found, and the report cannot show."
    )


def _unknown(judge: JudgeSpec) -> JudgeNote:
    return JudgeNote(judge.name, ("No error figures are known for this judge.",))
