"""The model card of an exported point: what it is, what was measured, what is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.method import method_row
from safemerge.config.metric import Metric, metrics_of
from safemerge.config.portable import portable_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.front import broken_constraints
from safemerge.lineage import ParentCard, front_matter, licence_lines, parent_cards
from safemerge.records import CandidateResult, MetricEstimate
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

_WHOLE_MEASURED = (
    "The figures below were measured on the whole merge, not on this adapter: measure again what "
    "differs from it."
)


def model_card(run: Run, number: int, *, adapter: str | None = None) -> str:
    """Write the model card of one trial, as Markdown with Hugging Face front matter.

    Args:
        run: The run.
        number: Trial number: of the front, a reference point, or any trial with a result.
        adapter: What is said of the merge as a LoRA adapter; None for a whole model.

    Returns:
        The text, ending in a newline. No text that a model generated is in it.

    Raises:
        UserError: If there is no such trial or it has no result.
    """
    point = run.point(number)
    recipe = MergeRecipe.model_validate(point.trial.recipe)
    parents = parent_cards(_known(run, recipe))
    front = front_matter(
        parents,
        library="transformers" if adapter is None else "peft",
        tags=[recipe.method.name, *([] if adapter is None else ["lora"])],
        model_index=[_model_index(run, point)],
    )
    form = "" if adapter is None else f"## Form\n\n{adapter} {_WHOLE_MEASURED}"
    parts = [front, _opening(run, point), form, _measurements(run, point)]
    parts += [
        _differences(run, point),
        _attribution(run, point),
        _recipe(run, point, recipe),
        _licences(parents),
    ]
    return "\n\n".join([*(part for part in parts if part), _limits(run)]) + "\n"


def _known(run: Run, recipe: MergeRecipe) -> list[CheckpointRef]:
    """Return a recipe's models as the study has them: with their repositories."""
    known = {item.name: item for item in run.spec.checkpoints}
    return [
        known[ref.name] if ref.name in known and ref.hub is None and not ref.parts else ref
        for ref in recipe.checkpoints
    ]


def _model_index(run: Run, point: Point) -> dict[str, Any]:
    """Return the results as the Hub's ``model-index`` has them, intervals as arguments."""
    metrics = metrics_of(run.spec)
    results: dict[str, dict[str, Any]] = {}
    for name, metric in metrics.items():
        found = point.shown.metrics.get(name)
        if found is None or found.value is None:
            continue
        owner = name.rpartition(".")[0] or name
        task = {"type": "text-generation", "name": "Text Generation"}
        dataset = {"name": owner, "type": _dataset(run, owner), "split": point.shown.split}
        entry = results.setdefault(owner, {"task": task, "dataset": dataset, "metrics": []})
        entry["metrics"].append(_indexed(metric, found))
    name = f"{run.spec.name}, {point.name}"
    return {"name": name, "results": list(results.values())}


def _indexed(metric: Metric, found: MetricEstimate) -> dict[str, Any]:
    arguments = {"low": found.low, "high": found.high, "confidence": 0.95, "n": found.n}
    return {
        "type": metric.name.rpartition(".")[2],
        "name": f"{metric.name} {estimate_text(found)}",
        "value": found.value,
        "args": arguments,
    }


def _dataset(run: Run, suite: str) -> str:
    """Return the Hub's id of a suite's data, or what they are called; never a path."""
    for item in run.spec.suites:
        if item.name == suite:
            source = item.report.source
            for key in ("dataset", "name"):
                if isinstance(named := getattr(source, key, None), str):
                    return named
            return str(getattr(item.task, "task", suite))
    return "aggregate"


def _licences(parents: list[ParentCard]) -> str:
    return "\n".join(["## Licences of the parents", "", *licence_lines(parents)])


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


def _attribution(run: Run, point: Point) -> str:
    """Say what parts of the merge contribute, if it was asked."""
    for found in run.attributions:
        if found.trial == point.number and found.sentences:
            lines = [f"- {markdown(sentence)}" for sentence in found.sentences]
            return "\n".join(
                [
                    "## What its parts contribute",
                    "",
                    "The merge minus the same recipe without the part, on the prompts of the "
                    "search, by which it was chosen; significant effects alone, after Holm's "
                    "correction.",
                    "",
                    *lines,
                ]
            )
    return ""


def _recipe(run: Run, point: Point, recipe: MergeRecipe) -> str:
    source = method_row(recipe.method.name).source
    link = f", <{source.url}>" if source.url else ""
    lines = ["## Recipe", "", f"{source.title}: {source.citation}{link}. {source.variant}", ""]
    lines += [
        f"- {name}: {_code(value)}"
        for name, value in coefficients(point.trial.recipe, point.trial.params)
    ]
    lines += ["", "| model | weights digest |", "| --- | --- |"]
    known = {item.name: item.digest for item in run.spec.checkpoints}
    for item in recipe.checkpoints:
        digest = item.digest or known.get(item.name)
        lines.append(_row([item.name, digest or "not recorded"]))
    named = portable_recipe(recipe, Path(Path.cwd().anchor))
    text = json.dumps(named.resolved(), indent=2, ensure_ascii=False)
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
