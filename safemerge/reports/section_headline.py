"""The top of the page: whether the run is finished, and what was found, in plain words."""

from __future__ import annotations

from collections import Counter

from markupsafe import Markup

from safemerge.config.metric import Metric, metrics_of
from safemerge.front import broken_constraints
from safemerge.records import MEAN_LABEL, TrialRecord
from safemerge.reports.comparison import PairedDifference
from safemerge.reports.markup import (
    Cell,
    breakable,
    code,
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
    change_word,
    counted,
    estimate_text,
    interval,
    joined,
    recipe_text,
)

LIMIT_WORDS = {"minimize": "at most", "maximize": "at least"}

NUM_MISSES = 5
"""Nearest misses shown when nothing is feasible."""


def status_banner(run: Run) -> Markup:
    """Say how far the run is, and how its trials ended."""
    counts = run.counts
    num_again = sum(trial.is_tried_again for trial in run.trials)
    words = [
        counted(counts["feasible"], "feasible trial"),
        f"{counts['infeasible']} infeasible",
        f"{counts['broken']} broken",
        *([f"{counts['pruned']} pruned"] if run.spec.rung is not None else []),
        f"{counts['failed'] - num_again} failed",
        *([f"{num_again} tried again"] if num_again else []),
    ]
    parts = [f"{run.num_sampled} of {run.spec.num_trials} sampled trials finished"]
    if run.front is not None and run.front.covered:
        parts = [
            f"{counted(run.num_sampled, 'sampled trial')} finished: every recipe of the search "
            f"spaces, within a budget of {run.spec.num_trials}"
        ]
    num_exact = sum(
        trial.exact_of is not None and not trial.is_tried_again for trial in run.trials
    )
    num_references = len(run.trials) - run.num_sampled - num_exact - num_again
    exact = {trial.exact_of for trial in run.trials if trial.state == "COMPLETE"} - {None}
    if exact:
        parts[0] += f", {len(exact)} of them again at exact values"
    if num_references:
        parts[0] += f", and {counted(num_references, 'reference point')}"
    parts.append(joined(words))
    lines = [paragraph(f"{'; '.join(parts)}.", css="status")]
    if not run.is_complete:
        if run.front is None:
            told = (
                "This run is unfinished. No front is published yet: nothing below was measured "
                "on held-out prompts."
            )
        else:
            told = (
                "This run is unfinished: the front was published before all sampled trials had "
                "finished."
            )
        lines.append(
            fill('<p class="warning" role="status"><b>Unfinished.</b> {{ told }}</p>', told=told)
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
    """Tell what was found: the knee against the plain mean and each parent, or why nothing."""
    if not run.trials:
        return paragraph("No trial has finished yet.", css="lead")
    if not run.points:
        return _nothing_feasible(run)
    if run.knee is not None:
        return _knee(run, run.knee)
    if run.front is None:
        count = counted(len(run.points), "trial is", "trials are")
        return paragraph(
            f"So far {count} not dominated by any other, on the search split. These figures "
            "are flattered: the same prompts chose the points.",
            css="lead",
        )
    broken = {
        item.metric for point in run.points for item in broken_constraints(run.spec, point.shown)
    }
    return paragraph(
        f"The search found {counted(len(run.points), 'point')}, but on held-out prompts none "
        f"keeps every limit ({joined(sorted(broken)) or 'a value is missing'}). "
        "There is no knee, and no point to recommend.",
        css="lead",
    )


def _knee(run: Run, knee: Point) -> Markup:
    metrics = metrics_of(run.spec)
    objectives = [metrics[item.metric] for item in run.spec.objectives]
    limits = [metrics[item.metric] for item in run.spec.constraints]
    if knee.trial.role == "reference":
        kind = "the plain mean" if knee.label == MEAN_LABEL else "a reference point"
        if is_parent(run, knee):
            kind = "a model you already had"
        if is_warm_start(run, knee):
            kind = "a recipe that the search started from"
        lead = (
            f"The best-balanced point is <b>{{{{ name }}}}</b>, {kind}: no merge that the search "
            "tried strikes a better balance."
        )
    else:
        lead = "The best-balanced merge is <b>{{ name }}</b>, the knee of the front."
    lead += " On prompts that the search never saw:"
    shown = [metric for metric in dict.fromkeys(limits) if metric not in objectives]
    versus = compare_with_references(run, knee, metrics=[*objectives, *shown])
    figures = joined_markup(_figure(run, knee, metric) for metric in (*objectives, *shown))
    num_objectives = len(objectives)
    sentences = [_compared(run, item, num_objectives) for item in versus]
    parts = [
        paragraph(fill(lead, name=knee.name), css="lead"),
        fill('<dl class="figures">{{ figures }}</dl>', figures=figures),
        paragraph(_picked(run), css="note"),
        paragraph(
            fill(
                "Recipe: {{ told }}", told=code(recipe_text(knee.trial.recipe, knee.trial.params))
            )
        ),
    ]
    if sentences:
        parts.append(items(sentences))
        parts.append(_versus_table(run, knee, versus, [*objectives, *shown]))
    return joined_markup(parts)


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
        details = f"95 % interval {interval(estimate)}, n = {estimate.n}{unscored}"
    mean = next((item for item in run.references if item.label == "mean"), None)
    if mean is not None and mean.number != point.number:
        other = mean.shown.metrics.get(metric.name)
        notes.append(f"plain mean {amount(None if other is None else other.value, metric.unit)}")
    shown = amount(value, metric.unit)
    return piece("figure", breakable(metric.name), shown, details, "; ".join(notes))


def _compared(run: Run, versus: Versus, num_objectives: int) -> Markup:
    reference = versus.reference
    who = "the parent <b>{{ name }}</b>"
    if not is_parent(run, reference):
        who = "the plain mean" if reference.label == "mean" else "<b>{{ name }}</b>"
    told = "; ".join(_sentence(item) for item in versus.differences[:num_objectives])
    return fill(f"Against {who}: {{{{ told }}}}.", name=reference.name, told=told)


def _sentence(difference: PairedDifference) -> str:
    metric = difference.metric
    if difference.value is None:
        return f"{metric} cannot be compared (no sample scored on both sides)"
    if not difference.is_distinguishable:
        told = f"{change(difference.value, difference.unit)}{change_word(difference.unit)}"
        return f"{metric} {told}, not significant {difference.correction}"
    size = change(abs(difference.value), difference.unit).lstrip("+")
    size += change_word(difference.unit)
    return f"{metric} {difference.verdict} by {size}, significant {difference.correction}"


def _picked(run: Run) -> str:
    if run.front is None or run.front.belief is None:
        return "The knee was picked by these figures, so they flatter it a little."
    return "The knee was picked on the search split, by posterior means, not by these figures."


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
        told = [f"{reason} \u00d7 {count}" for reason, count in reasons.most_common(8)]
        more = [f"and {len(reasons) - 8} other reasons"] if len(reasons) > 8 else []
        parts += [paragraph("Why trials failed or broke:"), items([*told, *more])]
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
    told = change(value, metric.unit).lstrip("+")
    return f"{told} points" if metric.unit == "share" else told
