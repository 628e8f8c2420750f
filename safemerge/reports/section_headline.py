"""The first screen: verdict, recommended point and chart; and the answers that follow it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from markupsafe import Markup

from safemerge.config.metric import Metric, metrics_of
from safemerge.front import broken_constraints
from safemerge.records import MEAN_LABEL, TrialRecord
from safemerge.reports.family import family_metrics
from safemerge.reports.markup import (
    Cell,
    breakable,
    difference_cell,
    fill,
    items,
    joined_markup,
    paragraph,
    piece,
    quiet,
    table,
    text_cell,
)
from safemerge.reports.run import Point, Run, outcome
from safemerge.reports.section_front import export_command
from safemerge.reports.section_trials import plot_section
from safemerge.reports.verdict import judged_by, verdict
from safemerge.reports.versus import (
    Versus,
    compare_with_references,
    is_parent,
    is_warm_start,
)
from safemerge.reports.wording import (
    DIRECTION_WORDS,
    amount,
    change,
    counted,
    estimate_text,
    interval,
    joined,
    recipe_text,
)

LIMIT_WORDS = {"minimize": "at most", "maximize": "at least"}

NUM_MISSES = 5
"""Nearest misses shown when nothing is feasible."""


def status_banner(run: Run, *, is_live: bool = False) -> Markup:
    """Say what is missing: that the run is unfinished, or a point was not evaluated."""
    lines = []
    if is_live:
        lines.append(
            fill(
                '<p class="warning" role="status"><b>This search is running.</b> {{ done }} of '
                "{{ budget }} sampled trials finished by {{ now }}. Nothing below was measured on "
                "held-out prompts yet. The page loads itself again and keeps what is pinned.</p>",
                done=run.num_sampled,
                budget=run.spec.num_trials,
                now=datetime.now(UTC).strftime("%H:%M:%S UTC"),
            )
        )
    elif not run.is_complete:
        detail = (
            "No front is published yet: nothing below was measured on held-out prompts."
            if run.front is None
            else "The front was published before all sampled trials had finished."
        )
        lines.append(
            fill(
                '<p class="warning" role="status"><b>This run is unfinished.</b> '
                "{{ done }} of {{ budget }} sampled trials finished. {{ detail }} Continue with "
                "<code>safemerge search STUDY.yaml --resume</code>.</p>",
                done=run.num_sampled,
                budget=run.spec.num_trials,
                detail=detail,
            )
        )
    if run.left_out:
        names = joined([f"trial {trial.number}" for trial in run.left_out])
        lines.append(
            fill(
                '<p class="warning"><b>Not on the published front:</b> {{ names }} would be on '
                "the front by the search split, but {{ have }} no result on the report split.</p>",
                names=names,
                have="has" if len(run.left_out) == 1 else "have",
            )
        )
    return joined_markup(lines)


def headline_section(run: Run) -> Markup:
    """Tell the verdict and who judged, with the recommended point beside the chart."""
    chart = plot_section(run)
    if not run.trials:
        return paragraph("No trial has finished yet.", css="lead") + chart
    if not run.points:
        return _nothing_feasible(run) + piece("first_screen", Markup(), chart)
    judges = judged_by(run)
    judged = (
        paragraph(fill("Harm was judged by {{ judges }}.", judges=judges), css="judged")
        if judges
        else Markup()
    )
    if run.knee is not None:
        lead = paragraph(_lead(run, run.knee), css="lead")
        first = piece("first_screen", _recommended(run, run.knee), chart)
        return lead + judged + first
    if run.front is None:
        count = counted(len(run.points), "trial is", "trials are")
        detail = (
            f"So far {count} not dominated by any other, on the search split. These figures "
            "are flattered: the same prompts chose the points."
        )
    else:
        broken = {
            item.metric
            for point in run.points
            for item in broken_constraints(run.spec, point.shown)
        }
        detail = (
            f"The search found {counted(len(run.points), 'point')}, but on held-out prompts none "
            f"keeps every limit ({joined(sorted(broken)) or 'a value is missing'}). "
            "There is no knee, and no point to recommend."
        )
    return paragraph(detail, css="lead") + judged + piece("first_screen", Markup(), chart)


def _lead(run: Run, knee: Point) -> str:
    detail = verdict(run, knee)
    if knee.trial.role == "sampled":
        return detail
    kind = "the plain mean" if knee.label == MEAN_LABEL else "a reference point"
    if is_parent(run, knee):
        kind = "a model you already had"
    if is_warm_start(run, knee):
        kind = "a recipe that the search started from"
    return fill(
        "The best-balanced point is <b>{{ name }}</b>, {{ kind }}: no merge that the search tried "
        "is better balanced. {{ detail }}",
        name=knee.name,
        kind=kind,
        detail=detail,
    )


def _recommended(run: Run, knee: Point) -> Markup:
    metrics = [item for item in family_metrics(run) if item.use != "other"]
    return piece(
        "recommended",
        knee.name,
        joined_markup(_figure(run, knee, metric) for metric in metrics),
        _picked(run),
        recipe_text(knee.trial.recipe, knee.trial.params),
        export_command(run, knee.number),
    )


def _picked(run: Run) -> str:
    if run.front is None or run.front.belief is None:
        return "The knee was picked by these figures, so they flatter it a little."
    return "The knee was picked on the search split, by posterior means, not by these figures."


def versus_section(run: Run, metrics: list[Metric]) -> Markup:
    """Compare the recommended point with every reference point.

    Args:
        run: The run.
        metrics: Of the run's family; those that one question is about.

    Returns:
        The section; it says so if there is no such point or no such metric.
    """
    if not metrics:
        return paragraph("No metric of this study measures it.")
    if run.knee is None:
        return paragraph("There is no recommended point to compare.")
    versus = compare_with_references(run, run.knee, metrics=metrics)
    if not versus:
        return paragraph("There is no reference point to compare with.")
    return _versus_table(run, run.knee, versus, metrics)


def _figure(run: Run, point: Point, metric: Metric) -> Markup:
    """Return one metric as a figure to be read at a glance, with all that qualifies it."""
    estimate = point.shown.metrics.get(metric.name)
    value = None if estimate is None else estimate.value
    budgets = [
        f"{LIMIT_WORDS[item.direction]} {amount(item.budget, metric.unit)}"
        for item in run.spec.constraints
        if item.metric == metric.name
    ]
    notes = [DIRECTION_WORDS[metric.direction], *(f"limit {text}" for text in budgets)]
    details = ""
    if estimate is not None:
        unscored = f", {estimate.unscored} unscored" if estimate.unscored else ""
        details = f"{interval(estimate)}, n = {estimate.n}{unscored}"
    mean = next((item for item in run.references if item.label == MEAN_LABEL), None)
    if mean is not None and mean.number != point.number:
        other = mean.shown.metrics.get(metric.name)
        notes.append(f"plain mean {amount(None if other is None else other.value, metric.unit)}")
    shown = amount(value, metric.unit)
    return piece("figure", breakable(metric.name), shown, details, "; ".join(notes))


def _versus_table(run: Run, knee: Point, versus: list[Versus], metrics: list[Metric]) -> Markup:
    reaches = [
        max(
            (
                abs(end)
                for item in versus
                for end in (item.differences[index].low, item.differences[index].high)
                if end is not None
            ),
            default=0.0,
        )
        for index in range(len(metrics))
    ]
    rows = []
    for item in versus:
        kind = "parent" if is_parent(run, item.reference) else "merge"
        head = Cell(
            fill("{{ name }} {{ kind }}", name=item.reference.name, kind=quiet(kind)),
            item.reference.name,
        )
        cells = [
            difference_cell(difference, reach=reach)
            for difference, reach in zip(item.differences, reaches, strict=True)
        ]
        rows.append([head, *cells])
    caption = (
        f"{knee.name} minus each reference point, on the same {versus[0].split}-split "
        "prompts: paired difference in percentage points with 95 % interval. The interval is of "
        "each comparison alone. p: of no difference, two-sided, exact, after correction for all "
        "comparisons of this report (Holm). n: prompts scored on both sides; of an aggregate, "
        "those of its smallest suite."
    )
    heads = [f"{metric.name} ({DIRECTION_WORDS[metric.direction]})" for metric in metrics]
    return table(caption, ["minus", *heads], rows, css="versus", sortable=False)


def _nothing_feasible(run: Run) -> Markup:
    counts = run.counts
    tried = counted(len(run.trials), "trial")
    lead = f"<b>No feasible point.</b> None of {tried} keeps every limit."
    if counts["failed"] == len(run.trials):
        lead = (
            "<b>Every trial failed.</b> Nothing was measured, so nothing can be said about any "
            "merge."
        )
    parts = [paragraph(Markup(lead), css="lead")]
    misses = [trial for trial in run.trials if outcome(trial) == "infeasible"]
    misses.sort(key=lambda trial: (_excess(trial), trial.number))
    if misses:
        parts.append(_miss_table(run, misses[:NUM_MISSES]))
    reasons = Counter(
        trial.reason or "no reason given"
        for trial in run.trials
        if outcome(trial) in ("failed", "broken")
    )
    if reasons:
        counted_reasons = [f"{reason} \u00d7 {count}" for reason, count in reasons.most_common(8)]
        more = [f"and {len(reasons) - 8} other reasons"] if len(reasons) > 8 else []
        parts += [paragraph("Why trials failed or broke:"), items([*counted_reasons, *more])]
    return joined_markup(parts)


def _excess(trial: TrialRecord) -> float:
    return sum((max(value, 0.0) for value in trial.violations.values()), 0.0)


def _miss_table(run: Run, misses: list[TrialRecord]) -> Markup:
    metrics = metrics_of(run.spec)
    rows = []
    for trial in misses:
        who = trial.label if trial.role == "reference" else f"trial {trial.number}"
        over = [
            f"{name} by {_amount_over(value, metrics[name])}"
            for name, value in trial.violations.items()
            if value > 0
        ]
        values = [
            text_cell(estimate_text(trial.result.metrics.get(item.metric)))
            if trial.result is not None
            else text_cell("not measured")
            for item in run.spec.objectives
        ]
        rows.append([text_cell(who), text_cell(joined(over)), *values])
    heads = ["nearest miss", "limit broken", *(item.metric for item in run.spec.objectives)]
    caption = "Nearest misses, by the sum of what they exceed their limits by; search split."
    return table(caption, heads, rows, sortable=False)


def _amount_over(value: float, metric: Metric) -> str:
    detail = change(value, metric.unit).lstrip("+")
    return f"{detail} points" if metric.unit == "share" else detail
