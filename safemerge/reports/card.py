"""The model card of an exported point: what it is, what was measured, what is not known."""

from __future__ import annotations

import json

import yaml

from safemerge.config.metric import metrics_of
from safemerge.front import broken_constraints
from safemerge.records import CandidateResult
from safemerge.reports.metric import judge_notes
from safemerge.reports.run import Point, Run, outcome
from safemerge.reports.versus import compare_with_references
from safemerge.reports.wording import (
    DIRECTION_WORDS,
    amount,
    coefficients,
    difference_text,
    estimate_text,
    markdown,
    p_value_text,
)

LIMITS = (
    "The figures hold for the prompts, the answer lengths and the judge named here, not for "
    "all uses. A low harmful score is no proof of safety.",
    "The point was chosen among many on the search split. Only the report split was held "
    "out; if the knee was chosen on it, its figures there are slightly flattered.",
    "Intervals are 95 %, one at a time: with many comparisons some exclude 0 by luck.",
    "Nobody has read the answers: they were scored by rule or by a judge model.",
)
"""What a reader must not conclude, for any point."""


def model_card(run: Run, number: int) -> str:
    """Write the model card of one trial, as Markdown with Hugging Face front matter.

    Args:
        run: The run.
        number: Trial number: of the front, a reference point, or any trial with a result.

    Returns:
        The text, ending in a newline. No text that a model generated is in it.

    Raises:
        UserError: If there is no such trial or it has no result.
    """
    point = run.point(number)
    parts = [_front_matter(), _opening(run, point), _measurements(run, point)]
    parts += [_differences(run, point), _recipe(run, point), _limits(run)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter() -> str:
    document = {"library_name": "transformers", "tags": ["merge", "safemerge"]}
    return f"---\n{yaml.safe_dump(document, sort_keys=True).strip()}\n---"


def _opening(run: Run, point: Point) -> str:
    names = ", ".join(_code(item.name) for item in run.spec.checkpoints)
    lines = [
        f"# {markdown(run.spec.name)}: {markdown(point.name)}",
        "",
        f"A merge of {names}, found by a safemerge search and written by "
        f"`safemerge export`. Candidate {_code(point.search.candidate)}, trial {point.number} "
        f"of study {_code(run.spec.name)} ({_code(run.study_digest)}).",
    ]
    on_front = point.number in {item.number for item in run.points}
    if run.knee is not None and run.knee.number == point.number:
        lines += ["", "It is the knee of the published front: the most balanced point."]
    elif not on_front:
        lines += [
            "",
            "**It is not on the front:** another candidate is at least as good "
            "in every objective, or this one is not feasible.",
        ]
    if point.report is None:
        lines += [
            "",
            "**It was not evaluated on the report split.** The figures below are "
            "those that the search itself saw, and are flattered by selection.",
        ]
    if run.spec.rung is not None:
        sets = ", ".join(_code(name) for name in run.spec.rung.sets)
        lines += [
            "",
            f"Candidates with higher losses than another on every pair set ({sets}) were pruned "
            "before they were evaluated.",
        ]
    if outcome(point.trial) != "feasible":
        reason = markdown(point.trial.reason or "no reason given")
        lines += ["", f"**It is {outcome(point.trial)}:** {reason}."]
    return "\n".join(lines)


def _measurements(run: Run, point: Point) -> str:
    results: list[CandidateResult] = [
        item for item in (point.report, point.search) if item is not None
    ]
    heads = ["metric", *(f"{item.split} split" for item in results), "better"]
    lines = ["## Measured", "", "Mean with 95 % interval.", "", _row(heads)]
    lines.append(_row(["---"] * len(heads)))
    metrics = metrics_of(run.spec)
    for metric in metrics.values():
        cells = [estimate_text(item.metrics.get(metric.name)) for item in results]
        name = f"{metric.name} ({metric.use})" if metric.use != "other" else metric.name
        lines.append(_row([name, *cells, DIRECTION_WORDS[metric.direction]]))
    for result in results:
        for item in broken_constraints(run.spec, result):
            budget = amount(item.budget, metrics[item.metric].unit)
            limit = "at most" if item.direction == "minimize" else "at least"
            lines += [
                "",
                f"**Breaks a constraint on the {result.split} split:** "
                f"{_code(item.metric)} must be {limit} {budget}.",
            ]
    return "\n".join(lines)


def _differences(run: Run, point: Point) -> str:
    metrics = metrics_of(run.spec)
    objectives = [metrics[item.metric] for item in run.spec.objectives]
    versus = compare_with_references(run, point, metrics=objectives)
    if not versus:
        return ""
    heads = ["minus", *(metric.name for metric in objectives)]
    lines = [
        "## Against the reference points",
        "",
        f"Paired difference on the same prompts, {versus[0].split} split, "
        "with 95 % interval; p of no difference, after correction for all "
        f"{versus[0].differences[0].num_comparisons} comparisons of the run's report (Holm).",
        "",
        _row(heads),
        _row(["---"] * len(heads)),
    ]
    for item in versus:
        cells = [
            f"{difference_text(found)}, {p_value_text(found.p_value)}: {found.verdict}"
            for found in item.differences
        ]
        lines.append(_row([item.reference.name, *cells]))
    return "\n".join(lines)


def _recipe(run: Run, point: Point) -> str:
    lines = ["## Recipe", ""]
    lines += [
        f"- {name}: {_code(value)}"
        for name, value in coefficients(point.trial.recipe, point.trial.params)
    ]
    lines += ["", "| model | weights digest |", "| --- | --- |"]
    models = [point.trial.recipe["base"], *point.trial.recipe["experts"]]
    known = {item.name: item.digest for item in run.spec.checkpoints}
    for item in models:
        digest = item.get("digest") or known.get(item["name"])
        lines.append(_row([item["name"], digest or "not recorded"]))
    text = json.dumps(point.trial.recipe, indent=2, ensure_ascii=False)
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return "\n".join([*lines, "", f"{fence}json", text, fence])


def _limits(run: Run) -> str:
    lines = ["## Limits", "", *(f"- {item}" for item in LIMITS)]
    for note in judge_notes(run.spec):
        lines += [f"- Judge: {note.title}. {' '.join(note.sentences)}"]
    if run.provenance is not None:
        lines += [
            "",
            f"Made with safemerge {run.provenance.safemerge} "
            f"(commit {run.provenance.commit or 'not recorded'}), seed {run.spec.seed}, "
            f"{run.provenance.created_at}.",
        ]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(markdown(cell) for cell in cells)} |"


def _code(text: str) -> str:
    return f"`{text.replace('`', ' ').replace(chr(10), ' ')}`"
