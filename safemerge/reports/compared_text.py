"""Runs side by side as text of 80 columns."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from safemerge.reports.compared import ComparedPair, ComparedRun, RunsCompared, verdicts
from safemerge.reports.volume import Volume
from safemerge.reports.wording import amount, change, counted, p_value_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

MOST_SETTINGS = 40
"""Settings listed on a terminal; the page and the JSON have all."""
ONE_RUN = (
    "Each run is one search: another seed would move its front, and no interval or p-value here "
    "accounts for that."
)


def volume_text(volume: Volume | None, *, signed: bool = False) -> str:
    """Return a hypervolume with its interval, e.g. ``0.512 [0.480, 0.541]``."""
    if volume is None:
        return "-"
    form = "{:+.3f}" if signed else "{:.3f}"
    text = form.format(volume.value)
    if volume.low is None or volume.high is None:
        return text
    return f"{text} [{form.format(volume.low)}, {form.format(volume.high)}]"


def pair_text(pair: ComparedPair) -> str:
    """Return a difference with interval, p-value and verdict."""
    if pair.value is None or pair.low is None or pair.high is None:
        return "no sample scored on both sides"
    ends = ", ".join(change(end, pair.unit) for end in (pair.low, pair.high))
    value = f"{change(pair.value, pair.unit)} [{ends}]"
    return f"{value}, {p_value_text(pair.p_adjusted)}, {pair.verdict}"


def compared_lines(compared: RunsCompared, *, width: int = 80) -> list[str]:
    """Return what a reader needs before the tables, wrapped."""
    base = compared.runs[0]
    sentences = [*verdicts(compared)]
    split = "held-out prompts (report split)" if compared.split == "report" else "the search split"
    sentences.append(f"Values of {split}; differences are a run's minus those of {base.name}.")
    if compared.no_hypervolume is not None:
        sentences.append(f"Hypervolumes are not compared: {compared.no_hypervolume}.")
    sentences += [f"Not compared: suite {item.suite}, {item.reason}." for item in compared.suites]
    sentences.append(ONE_RUN)
    return [
        line for text in sentences for line in textwrap.wrap(text, width, subsequent_indent="  ")
    ]


def compared_tables(compared: RunsCompared) -> Iterator[Table]:
    """Draw the tables for a terminal: runs, knees, common candidates, settings."""
    yield _runs(compared)
    for kind, title in (("knee", "Knees"), ("common", "Candidates of both runs")):
        pairs = [item for item in compared.pairs if item.kind == kind]
        if kind == "common":
            clear = [item for item in pairs if item.verdict != "not significant"]
            title = f"{title}: {len(clear)} of {len(pairs)} differences significant"
            pairs = clear
        if pairs:
            yield _pairs(compared, pairs, title)
    if compared.settings:
        yield _settings(compared)


def estimate_text(compared: RunsCompared, run: ComparedRun, metric: str) -> str:
    """Return the knee's value of a metric with its interval; ``-`` without one."""
    knee = run.knee()
    found = None if knee is None else knee.estimates.get(metric)
    if found is None or found[0] is None:
        return "-"
    unit = compared.units[metric]
    value, *ends = (None if item is None else amount(item, unit, sign=False) for item in found[:3])
    return f"{value}" if None in ends else f"{value} [{ends[0]}, {ends[1]}]"


def _table(title: str, *heads: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", expand=False)
    for head in heads:
        table.add_column(escape(head), overflow="fold")
    return table


def _runs(compared: RunsCompared) -> Table:
    from rich.markup import escape

    base = compared.runs[0].name
    table = _table("Runs", "run", "trials", "front", "hypervolume", f"minus {base}")
    for run in compared.runs:
        front = sum(point.front for point in run.points)
        state = "" if run.complete else ", unfinished"
        table.add_row(
            escape(run.name),
            f"{run.sampled} of {run.budget}{state}",
            counted(front, "point") if run.published else f"{front}, not published",
            volume_text(run.hypervolume),
            volume_text(run.gain, signed=True),
        )
    return table


def _pairs(compared: RunsCompared, pairs: list[ComparedPair], title: str) -> Table:
    from rich.markup import escape

    base = compared.runs[0].name
    table = _table(title, "run", "trials", "metric", f"minus {base}, 95 %, p (Holm)")
    for pair in pairs:
        table.add_row(
            escape(pair.run),
            f"{pair.trial} - {pair.baseline_trial}",
            escape(pair.metric),
            pair_text(pair),
        )
    return table


def _settings(compared: RunsCompared) -> Table:
    from rich.markup import escape

    more = len(compared.settings) - MOST_SETTINGS
    title = "Settings that differ" + (f" ({more} more with --json)" if more > 0 else "")
    table = _table(title, "setting", *(run.name for run in compared.runs))
    for item in compared.settings[:MOST_SETTINGS]:
        table.add_row(escape(item.setting), *map(escape, item.values))
    return table
