"""Runs side by side as one self-contained HTML page."""

from __future__ import annotations

import json

from markupsafe import Markup

from safemerge.reports.compared import ComparedPair, RunsCompared, verdicts
from safemerge.reports.compared_text import ONE_RUN, estimate_text, volume_text
from safemerge.reports.comparison import PairedDifference
from safemerge.reports.html import script
from safemerge.reports.markup import (
    Cell,
    Section,
    code,
    difference_cell,
    fill,
    items,
    joined_markup,
    no_number,
    page,
    paragraph,
    table,
    text_cell,
)
from safemerge.reports.payload import script_safe
from safemerge.reports.wording import counted

SCRIPTS = ("page.js", "compare.js")


def render_comparison(compared: RunsCompared) -> str:
    """Render runs side by side.

    Args:
        compared: The runs.

    Returns:
        A whole HTML document that loads nothing and holds no generated text.
    """
    names = [run.name for run in compared.runs]
    sections = [
        Section("found", "Verdict", "What was found", _found(compared)),
        Section("knees", "Knees", "Knee against knee", _knees(compared)),
        Section("common", "Common", "Candidates that both runs evaluated", _common(compared)),
        Section("settings", "Settings", "Settings that differ", _settings(compared)),
    ]
    payload = {
        "study": " and ".join(names),
        "trials": [],
        "metrics": {
            name: {
                "direction": direction,
                "scale": 100 if compared.units[name] == "share" else 1,
            }
            for name, direction in compared.metrics.items()
        },
        "axes": compared.axes,
        "split": compared.split,
        "runs": [run.resolved() for run in compared.runs],
    }
    return page(
        " · ".join(names),
        "comparison",
        Markup(),
        sections,
        payload=script_safe(json.dumps(payload, allow_nan=False)),
        script=script(SCRIPTS),
    )


def _found(compared: RunsCompared) -> Markup:
    base = compared.runs[0]
    lead = joined_markup(paragraph(line, css="lead") for line in verdicts(compared))
    split = "held-out prompts (report split)" if compared.split == "report" else "the search split"
    judged = paragraph(
        f"Values of {split}; differences are a run\u2019s minus those of {base.name}. {ONE_RUN}",
        css="judged",
    )
    refused = [
        fill(
            "Suite {{ name }} is not compared: {{ why }}.", name=code(item.suite), why=item.reason
        )
        for item in compared.suites
    ]
    if compared.no_hypervolume is not None:
        refused.append(
            fill("Hypervolumes are not compared: {{ why }}.", why=compared.no_hypervolume)
        )
    warning = (
        fill('<div class="warning" role="status">{{ refused }}</div>', refused=items(refused))
        if refused
        else Markup()
    )
    chart = (
        Markup(
            '<ul class="legend" id="compare-legend"></ul><div class="chart" id="compare"></div>'
            "<noscript><p>The chart needs JavaScript; the tables do not.</p></noscript>"
        )
        if compared.axes
        else paragraph("There is no chart: fewer than two metrics were measured alike.")
    )
    return joined_markup([lead, judged, warning, chart, _runs(compared)])


def _runs(compared: RunsCompared) -> Markup:
    rows = [
        [
            text_cell(run.name),
            text_cell(
                f"{run.sampled} of {run.budget}{'' if run.complete else ', unfinished'}",
                sort=run.sampled,
            ),
            text_cell(
                f"{counted(sum(point.front for point in run.points), 'point')}"
                f"{'' if run.published else ', not published'}"
            ),
            text_cell(volume_text(run.hypervolume)),
            text_cell(volume_text(run.gain, signed=True)),
        ]
        for run in compared.runs
    ]
    reference = ", ".join(f"{name} {value:g}" for name, value in compared.reference.items())
    caption = "The runs."
    if reference:
        caption = (
            f"Hypervolume against one reference for all ({reference}), of front points that keep "
            "their study\u2019s limits; 95 % interval over prompts (basic bootstrap, the points "
            "held fixed, the same resamples for every run)."
        )
    heads = ["run", "trials", "front", "hypervolume", f"minus {compared.runs[0].name}"]
    return table(caption, heads, rows, sortable=False)


def _knees(compared: RunsCompared) -> Markup:
    if not compared.metrics:
        return paragraph("No metric was measured alike in every run: nothing is compared.")
    rows = []
    for run in compared.runs:
        knee = run.knee()
        name = fill(
            "{{ name }} <span class=quiet>{{ label }}</span>",
            name=run.name,
            label="no knee" if knee is None else knee.label,
        )
        rows.append(
            [
                Cell(name),
                *(text_cell(estimate_text(compared, run, metric)) for metric in compared.metrics),
                text_cell("" if knee is None else knee.recipe),
            ]
        )
    own = table(
        "Value and 95 % interval of each run\u2019s knee; shares in percent.",
        ["run", *compared.metrics, "recipe"],
        rows,
        sortable=False,
    )
    return own + _pairs(compared, [item for item in compared.pairs if item.kind == "knee"])


def _common(compared: RunsCompared) -> Markup:
    pairs = [item for item in compared.pairs if item.kind == "common"]
    if not pairs:
        return paragraph("No candidate of one front or its references is in another run too.")
    lead = paragraph(
        "One candidate in two runs has the same weights: a difference is one of engine, judge or "
        "chance."
    )
    return lead + _pairs(compared, pairs)


def _pairs(compared: RunsCompared, pairs: list[ComparedPair]) -> Markup:
    if not pairs:
        return paragraph("There are no two knees to pair.")
    by_couple: dict[tuple[str, int, int], list[ComparedPair]] = {}
    for pair in pairs:
        by_couple.setdefault((pair.run, pair.trial, pair.baseline_trial), []).append(pair)
    rows = []
    for (run, trial, other), found in by_couple.items():
        name = f"{run}: {found[0].label} (#{trial}) against #{other}"
        by_metric = {item.metric: item for item in found}
        cells = [
            difference_cell(_difference(by_metric[metric]))
            if metric in by_metric
            else no_number("not compared")
            for metric in compared.metrics
        ]
        rows.append([text_cell(name), *cells])
    caption = (
        f"Minus {compared.runs[0].name}, on the prompts that both answered. p: of no difference, "
        f"corrected for {counted(pairs[0].num_comparisons, 'comparison')} of this page (Holm); "
        "the 95 % interval is of each comparison alone."
    )
    return table(caption, ["candidate", *compared.metrics], rows, css="versus", sortable=False)


def _difference(pair: ComparedPair) -> PairedDifference:
    return PairedDifference(
        pair.metric,
        pair.direction,
        pair.value,
        pair.low,
        pair.high,
        pair.n,
        pair.left_out,
        pair.p_adjusted,
        unit=pair.unit,
        num_comparisons=pair.num_comparisons,
    )


def _settings(compared: RunsCompared) -> Markup:
    if not compared.settings:
        return paragraph("No setting differs.")
    rows = [
        [Cell(code(item.setting)), *(Cell(code(value)) for value in item.values)]
        for item in compared.settings
    ]
    heads = ["setting", *(run.name for run in compared.runs)]
    return table("As the runs resolved them.", heads, rows, sortable=False)
