"""The charts' places in the page, with their controls, and the table of all trials."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from safemerge.config.metric import Metric, metrics_of
from safemerge.front import hypervolume_steps
from safemerge.records import TrialRecord
from safemerge.reports.markup import Cell, breakable, escape, number_cell, paragraph, table
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


def plot_section(run: Run) -> str:
    """Return the interactive scatter's controls, legend and place."""
    skill, harm = axes_of(run.spec)
    metrics = metrics_of(run.spec)

    def options(chosen: str) -> str:
        return "".join(
            f'<option value="{escape(name)}"{" selected" if name == chosen else ""}>'
            f"{escape(name)} ({DIRECTION_WORDS[item.direction]})</option>"
            for name, item in metrics.items()
        )

    report = "" if run.front is not None else " disabled"
    is_reported = run.front is not None and bool(run.points)
    splits = "".join(
        f'<label><input type="radio" name="split" value="{split}"'
        f"{' checked' if (split == 'report') == is_reported else ''}"
        f"{report if split == 'report' else ''}> {split} split</label>"
        for split in ("report", "search")
    )
    toggles = "".join(
        f'<label><input type="checkbox" id="show-{key}"{" checked" if on else ""}> {text}</label>'
        for key, text, on in (
            ("references", "reference points", True),
            ("dominated", "dominated trials", True),
            ("infeasible", "infeasible, or without a value", not run.points),
            ("intervals", "95 % intervals", True),
        )
    )
    return (
        '<form class="controls" id="scatter-controls" onsubmit="return false">'
        f"<fieldset><legend>Prompts</legend>{splits}</fieldset>"
        f"<fieldset><legend>Show</legend>{toggles}</fieldset>"
        "<fieldset><legend>Axes</legend>"
        f'<label>across <select id="axis-x">{options(skill.name)}</select></label>'
        f'<label>up <select id="axis-y">{options(harm.name)}</select></label>'
        "</fieldset></form>"
        '<ul class="legend" id="scatter-legend"></ul>'
        '<div class="chart" id="scatter"></div><p class="note" id="scatter-note"></p>'
        "<noscript><p>The chart needs JavaScript; figures/front.png shows the same, and the "
        "tables below hold every number.</p></noscript>"
    )


def trials_section(run: Run) -> str:
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
        state = Cell(
            f'<span class="outcome {how}"><span aria-hidden="true">{OUTCOME_MARKS[how]}</span> '
            f"{f'COMPLETE, {how}' if trial.state == 'COMPLETE' else trial.state}</span>"
            f'<span class="reason">{escape(trial.reason or "")}</span>',
            f"{trial.state} {how}",
        )
        name = escape(trial.label if trial.role == "reference" else f"trial {trial.number}")
        if trial.start is not None:
            name += f' <span class="quiet">for start {escape(trial.start)}</span>'
        if trial.interpolated:
            name += ' <span class="quiet">estimated between trained models</span>'
        if trial.exact_of is not None:
            name += f' <span class="quiet">trial {trial.exact_of} at its exact values</span>'
        front = ' <span class="flag">front</span>' if trial.number in on_front else ""
        values = [
            number_cell(value, amount(value, metric.unit, sign=False))
            if (value := trial.objectives.get(metric.name)) is not None and how != "broken"
            else Cell('<span class="quiet">none</span>', None, is_number=True)
            for metric in metrics
        ]
        recipe = escape(recipe_text(trial.recipe, trial.params))
        rows.append(
            [
                Cell(f"{name}{front}", float(trial.number)),
                state,
                *values,
                _violation(trial, known),
                Cell(f'<span class="recipe">{recipe}</span>'),
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
    return f"{paragraph(told)}<details open><summary>All trials</summary>{inner}</details>"


def hypervolume_section(run: Run) -> str:
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
    return paragraph(escape(" ".join(told))) + '<div class="chart" id="hypervolume"></div>'


def parameters_section(run: Run) -> str:
    """Return the small multiples' place."""
    if not any(trial.params and trial.result is not None for trial in run.trials):
        return paragraph("No sampled trial has values yet.")
    return (
        paragraph(
            "Each sampled trial with values, on the search split. A pattern here is a hint, not a "
            "cause: the sampler visits some regions more than others."
        )
        + '<div class="multiples" id="parameters"></div>'
    )


def _violation(trial: TrialRecord, known: Mapping[str, Metric]) -> Cell:
    if not trial.violations or outcome(trial) == "broken":
        return Cell('<span class="quiet">none</span>', None, is_number=True)
    metric, value = max(trial.violations.items(), key=lambda item: item[1])
    told = change(value, known[metric].unit)
    if value <= 0:
        return Cell(f'<span class="quiet">{told}</span>', value, is_number=True)
    where = f'<span class="ci">{breakable(metric)}</span>'
    return Cell(f"<b>{told}</b>{where}", value, is_number=True)


def _duration(trial: TrialRecord) -> Cell:
    try:
        took = datetime.fromisoformat(trial.finished_at) - datetime.fromisoformat(trial.started_at)
    except (TypeError, ValueError):
        return Cell('<span class="quiet">unknown</span>', None, is_number=True)
    return number_cell(took.total_seconds(), seconds(took.total_seconds()))


def _volume(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
