"""The charts' places in the page, with their controls, and the table of all trials."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from markupsafe import Markup

from safemerge.config.metric import Metric, metrics_of
from safemerge.front import hypervolume_steps
from safemerge.records import TrialRecord
from safemerge.reports.markup import (
    Cell,
    breakable,
    fill,
    no_number,
    number_cell,
    paragraph,
    piece,
    quiet,
    table,
)
from safemerge.reports.metric import axes_of
from safemerge.reports.run import Run, outcome
from safemerge.reports.wording import (
    DIRECTION_WORDS,
    amount,
    change,
    counted,
    recipe_text,
    seconds,
)

OUTCOME_MARKS = {
    "feasible": "\u25cf",
    "infeasible": "\u25cb",
    "broken": "\u2298",
    "pruned": "\u2702",
    "failed": "\u2715",
}


def plot_section(run: Run) -> Markup:
    """Return the interactive scatter's controls, legend and place."""
    skill, harm = axes_of(run.spec)
    metrics = metrics_of(run.spec)

    choices = [
        (f"{name} ({DIRECTION_WORDS[item.direction]})", name) for name, item in metrics.items()
    ]
    is_published = run.front is not None
    is_reported = is_published and bool(run.points)
    return piece(
        "plot", choices, skill.name, harm.name, is_published, is_reported, bool(run.points)
    )


def trials_section(run: Run) -> Markup:
    """Return every trial with its state and reason; none is left out."""
    if not run.trials:
        return paragraph("No trial has finished yet.")
    counts = run.counts
    complete = len(run.trials) - counts["failed"] - counts["pruned"]
    pruned = "" if run.spec.rung is None else f" {counts['pruned']} PRUNED,"
    told = (
        f"{counted(len(run.trials), 'trial')}: {complete} COMPLETE "
        f"({counts['feasible']} feasible, {counts['infeasible']} infeasible, "
        f"{counts['broken']} broken),{pruned} {counts['failed']} FAIL."
    )
    on_front = {point.number for point in run.points}
    known = metrics_of(run.spec)
    metrics = [known[item.metric] for item in run.spec.objectives]
    rows = []
    for trial in sorted(run.trials, key=lambda trial: trial.number):
        how = outcome(trial)
        state = fill(
            '<span class="outcome {{ how }}"><span aria-hidden="true">{{ mark }}</span> '
            '{{ state }}</span><span class="reason">{{ reason }}</span>',
            how=how,
            mark=OUTCOME_MARKS[how],
            state=f"COMPLETE, {how}" if trial.state == "COMPLETE" else trial.state,
            reason=trial.reason or "",
        )
        values = [
            number_cell(value, amount(value, metric.unit, sign=False))
            if (value := trial.objectives.get(metric.name)) is not None and how != "broken"
            else no_number("none")
            for metric in metrics
        ]
        recipe = recipe_text(trial.recipe, trial.params)
        rows.append(
            [
                Cell(_name(trial, trial.number in on_front), float(trial.number)),
                Cell(state, f"{trial.state} {how}"),
                *values,
                _violation(trial, known),
                Cell(fill('<span class="recipe">{{ recipe }}</span>', recipe=recipe)),
                _duration(trial),
            ]
        )
    heads = [
        "trial",
        "state and reason",
        *(f"{metric.name}{metric.sign}" for metric in metrics),
        "over its limit by (shares: points)",
        "recipe",
        "took",
    ]
    caption = (
        "All trials on the search split, as the search saw them. A trial below 0 keeps every "
        "limit, with so much to spare. Press a head to sort."
    )
    ids = [str(trial.number) for trial in sorted(run.trials, key=lambda trial: trial.number)]
    inner = table(caption, heads, rows, css="trials", row_ids=ids)
    return fill(
        "{{ told }}<details open><summary>All trials</summary>{{ inner }}</details>",
        told=paragraph(told),
        inner=inner,
    )


def _name(trial: TrialRecord, is_front: bool) -> Markup:
    notes = []
    if trial.start is not None:
        notes.append(f"for start {trial.start}")
    if trial.interpolated:
        notes.append("estimated between trained models")
    if trial.exact_of is not None:
        notes.append(f"trial {trial.exact_of} at its exact values")
    return fill(
        "{{ name }}{% for note in notes %} {{ note }}{% endfor %}"
        '{% if front %} <span class="flag">front</span>{% endif %}',
        name=trial.label if trial.role == "reference" else f"trial {trial.number}",
        notes=[quiet(note) for note in notes],
        front=is_front,
    )


def hypervolume_section(run: Run) -> Markup:
    """Return the hypervolume's place, with its values in words."""
    steps = hypervolume_steps(run.spec, run.trials)
    told = []
    if steps:
        told.append(
            f"After {counted(len(steps), 'trial')} the search split's hypervolume is "
            f"{steps[-1].value:.4f}."
        )
    if run.front is not None:
        told.append(
            "As published: "
            f"{_volume(run.front.hypervolume_search)} on the search split, "
            f"{_volume(run.front.hypervolume_report)} on the report split (only points that keep "
            "every limit there)."
        )
    metrics = metrics_of(run.spec)
    corner = ", ".join(
        f"{item.metric} {amount(item.reference, metrics[item.metric].unit)}"
        for item in run.spec.objectives
    )
    told.append(
        f"The hypervolume is the area of outcomes that the front dominates, measured "
        f"from the study's reference value: {corner}. More is better."
    )
    return paragraph(" ".join(told)) + Markup('<div class="chart" id="hypervolume"></div>')


def parameters_section(run: Run) -> Markup:
    """Return the small multiples' place."""
    if not any(trial.params and trial.result is not None for trial in run.trials):
        return paragraph("No sampled trial has values yet.")
    told = (
        "Each sampled trial with values, on the search split. A pattern here is a hint, not a "
        "cause: the sampler visits some regions more than others."
    )
    return paragraph(told) + Markup('<div class="multiples" id="parameters"></div>')


def _violation(trial: TrialRecord, known: Mapping[str, Metric]) -> Cell:
    if not trial.violations or outcome(trial) == "broken":
        return no_number("none")
    metric, value = max(trial.violations.items(), key=lambda item: item[1])
    told = change(value, known[metric].unit)
    if value <= 0:
        return Cell(quiet(told), value, is_number=True)
    shown = fill(
        '<b>{{ told }}</b><span class="ci">{{ metric }}</span>',
        told=told,
        metric=breakable(metric),
    )
    return Cell(shown, value, is_number=True)


def _duration(trial: TrialRecord) -> Cell:
    try:
        took = datetime.fromisoformat(trial.finished_at) - datetime.fromisoformat(trial.started_at)
    except (TypeError, ValueError):
        return no_number("unknown")
    return number_cell(took.total_seconds(), seconds(took.total_seconds()))


def _volume(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
