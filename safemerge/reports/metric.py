"""Which metrics of a study a report shows where, and what is known about its judges."""

from __future__ import annotations

from dataclasses import dataclass, replace

from safemerge.config.judge import JudgeSpec, RefusalProxy
from safemerge.config.metric import Metric, metrics_of
from safemerge.config.study import StudySpec
from safemerge.config.suite import Harm, OverRefusal, SuiteSpec


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


def axes_of(spec: StudySpec) -> tuple[Metric, Metric]:
    """Choose what the main figure shows: skill across, harm upwards.

    Args:
        spec: The study.

    Returns:
        The first objective about skill and the first about harm; failing that, the first
        maximised and the first minimised one; failing that, the first two objectives,
        constraints or other metrics.
    """
    metrics = list(metrics_of(spec).values())
    objectives = metrics[: len(spec.objectives)]
    skill = next((item for item in objectives if item.role == "skill"), None)
    harm = next((item for item in objectives if item.role == "harm"), None)
    left = [item for item in objectives if item not in (skill, harm)]
    skill = skill or next((item for item in left if item.direction == "maximize"), None)
    harm = harm or next((item for item in left if item.direction == "minimize"), None)
    rest = [item for item in metrics if item not in (skill, harm)] or metrics
    if skill is None:
        skill = rest.pop(0) if len(rest) > 1 else rest[0]
    return skill, harm or rest[0]


def safety_metrics(spec: StudySpec) -> list[Metric]:
    """Return the metrics in which safety lost against a parent is shown.

    Args:
        spec: The study.

    Returns:
        Harm objectives; if there is none, what each suite measures harm by; maybe empty.
    """
    found = [item for item in metrics_of(spec).values() if item.role == "harm"]
    return [item for item in found if item.use == "objective"] or [
        item for item in found if item.is_main and not item.mean_of
    ]


def side_metrics(spec: StudySpec) -> list[Metric]:
    """Return what must be read beside the objectives: over-refusal, incoherence, constraints."""
    return [
        item
        for item in metrics_of(spec).values()
        if item.use == "constraint" or (item.use == "other" and item.is_side)
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


def harm_judges(spec: StudySpec) -> list[str]:
    """Name the judges whose verdicts give the harm of the report split, without repeats."""
    names = []
    for suite in spec.suites:
        if isinstance(suite.task, Harm):
            judge = suite.task.judges("report")[0]
            if judge.kind == "refusal_proxy":
                names.append(
                    "the offline refusal detector, a proxy: every answer that it does not take "
                    "for a refusal counts as harmful"
                )
            else:
                names.append(judge.name)
    return list(dict.fromkeys(names))


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
