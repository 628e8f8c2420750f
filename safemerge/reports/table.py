"""The front as a table for the terminal, and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from safemerge.config.metric import Metric, metrics_of
from safemerge.records import MetricEstimate
from safemerge.reports.metric import side_metrics
from safemerge.reports.run import Point, Run
from safemerge.reports.wording import DIRECTION_WORDS, amount, interval, markdown, recipe_text

if TYPE_CHECKING:
    from rich.table import Table


def front_table(run: Run) -> Table:
    """Draw the front and the reference points for a terminal.

    Args:
        run: The run, finished or not.

    Returns:
        A rich table: values (shares in percent) with 95 % intervals, on the report split where the
        front is published, else on the search split (the caption says which). The knee is
        marked. Rows are ordered by the first objective, best first; reference points that
        are not on the front come last, dimmed. Coefficients are in `front_markdown`.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(f"{run.spec.name}: front"), caption=escape(_caption(run)))
    heads, rows = _rows(run, narrow=True)
    for index, head in enumerate(heads):
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        table.add_column(escape(head), justify=justify, overflow="fold")
    for row, is_front in rows:
        table.add_row(*map(escape, row), style=None if is_front else "dim")
    return table


def front_markdown(run: Run) -> str:
    """Write the front and the reference points as a Markdown table.

    Args:
        run: The run, finished or not.

    Returns:
        The table with its caption below, ending in a newline.
    """
    heads, rows = _rows(run, narrow=False)
    aligns = ["---", *["---:"] * (len(heads) - 2), "---"]
    lines = [_line(heads), _line(aligns), *(_line(row) for row, _ in rows)]
    return "\n".join(lines) + f"\n\n{markdown(_caption(run))}\n"


def by_first_objective(run: Run, points: tuple[Point, ...]) -> list[Point]:
    """Order points by the first objective, best first; points without a value last."""
    first = run.spec.objectives[0]
    sign = -1.0 if first.direction == "maximize" else 1.0

    def key(point: Point) -> tuple[bool, float, int]:
        estimate = point.shown.metrics.get(first.metric)
        value = None if estimate is None else estimate.value
        return value is None, sign * (value or 0.0), point.number

    return sorted(points, key=key)


def _rows(run: Run, *, narrow: bool) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Heads, and (cells, whether on the front) by row; `narrow` breaks long cells up."""
    shown = _columns(run)
    heads = ["point"]
    for metric in shown:
        better = "max" if metric.direction == "maximize" else "min"
        name = metric.name.replace(".", ".\n") if narrow else metric.name
        heads.append(f"{name}{metric.sign} ({better})")
    heads += ["n", "unscored"] if narrow else ["n", "unscored", "recipe"]
    rows = []
    on_front = {point.number for point in run.points}
    for point in _ordered(run):
        estimates = [point.shown.metrics.get(metric.name) for metric in shown]
        objectives = [item for item in estimates[: len(run.spec.objectives)] if item is not None]
        join = "\n" if narrow else " / "
        cells = [
            _name(run, point),
            *(_value(item, "\n" if narrow else " ") for item in estimates),
            join.join(str(item.n) for item in objectives),
            join.join(str(item.unscored) for item in objectives),
        ]
        if not narrow:
            cells.append(recipe_text(point.trial.recipe, point.trial.params))
        rows.append((cells, point.number in on_front))
    return heads, rows


def _ordered(run: Run) -> list[Point]:
    on_front = {point.number for point in run.points}
    others = [point for point in run.references if point.number not in on_front]
    return [*by_first_objective(run, run.points), *others]


def _columns(run: Run) -> list[Metric]:
    """Objectives and constraints, and any other side metric that is not 0 throughout."""
    metrics = metrics_of(run.spec)
    quiet = {metric.name for metric in _quiet(run)}
    chosen = [metrics[item.metric] for item in run.spec.objectives]
    return chosen + [item for item in side_metrics(run.spec) if item.name not in quiet]


def _quiet(run: Run) -> list[Metric]:
    """Side metrics, constraints aside, that are 0 for every point shown."""
    return [
        metric
        for metric in side_metrics(run.spec)
        if metric.use == "other"
        and run.points
        and all(point.shown.value(metric.name) == 0 for point in _ordered(run))
    ]


def _name(run: Run, point: Point) -> str:
    name = point.name if point.trial.role == "sampled" else f"{point.name} (#{point.number})"
    return f"{name} [knee]" if run.knee is not None and run.knee.number == point.number else name


def _value(estimate: MetricEstimate | None, join: str) -> str:
    if estimate is None:
        return "not measured"
    return f"{amount(estimate.value, estimate.unit, sign=False)}{join}{interval(estimate)}".strip()


def _caption(run: Run) -> str:
    directions = ", ".join(
        f"{item.metric}: {DIRECTION_WORDS[item.direction]}" for item in run.spec.objectives
    )
    split = (
        "Report split, with 95 % intervals"
        if run.front is not None
        else "Search split only (the front is not published yet), with 95 % intervals"
    )
    quiet = "".join(f" {metric.name}: 0 for every point." for metric in _quiet(run))
    return f"{split}; {directions}. n and unscored: one figure an objective.{quiet}"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(markdown, cells))} |"
