"""Small pieces of HTML: escaping, tables, intervals drawn to scale."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safemerge.records import MetricEstimate
from safemerge.reports.comparison import PairedDifference
from safemerge.reports.wording import NO_VALUE, amount, change, interval, p_value_text


@dataclass(frozen=True)
class Cell:
    """One table cell: its markup, already escaped, and what it sorts by."""

    markup: str
    sort: float | str | None = None
    is_number: bool = False


def escape(text: object) -> str:
    """Return text safe in HTML content and in quoted attributes."""
    return html.escape(str(text), quote=True)


def breakable(text: str) -> str:
    """Return escaped text that may wrap after the dots and underscores of metric names."""
    return escape(text).replace("_", "_<wbr>").replace(".", ".<wbr>")


def code(text: object) -> str:
    """Return text as code."""
    return f"<code>{escape(text)}</code>"


def paragraph(markup: str, *, css: str = "") -> str:
    """Return a paragraph; `markup` is escaped already."""
    return f'<p class="{css}">{markup}</p>' if css else f"<p>{markup}</p>"


def text_cell(text: object, *, sort: float | str | None = None) -> Cell:
    """Return a cell of plain text."""
    return Cell(escape(text), sort if sort is not None else str(text))


def number_cell(value: float | None, text: str) -> Cell:
    """Return a right-aligned cell; cells without a value sort last."""
    return Cell(escape(text), value, is_number=True)


def estimate_cell(estimate: MetricEstimate | None, *, is_broken: bool = False) -> Cell:
    """Return value, interval and n; marked if it breaks its constraint."""
    if estimate is None:
        return Cell('<span class="quiet">not measured</span>', None, is_number=True)
    counts = f"n\u00a0{estimate.n}"
    if estimate.unscored:
        counts += f", {estimate.unscored}\u00a0unscored"
    if estimate.value is None:
        return Cell(f'{NO_VALUE}<span class="ci">{counts}</span>', None, is_number=True)
    flag = ' <span class="flag">over budget</span>' if is_broken else ""
    return Cell(
        f"<b>{amount(estimate.value, estimate.unit, sign=False)}</b>{flag}"
        f'<span class="ci">{interval(estimate)}</span><span class="ci">{counts}</span>',
        estimate.value,
        is_number=True,
    )


def difference_cell(difference: PairedDifference, *, reach: float | None = None) -> Cell:
    """Return a paired difference in words, in figures, and as an interval drawn to scale.

    Args:
        difference: The difference.
        reach: Largest absolute end among the intervals of the column, for a common scale;
            if left out, the interval is given in figures only.

    Returns:
        The cell.
    """
    if difference.value is None or difference.low is None or difference.high is None:
        return Cell('<span class="quiet">no sample scored on both sides</span>', None)
    word = difference.verdict
    mark = {"better": "\u25b2", "worse": "\u25bc"}.get(word, "\u2248")
    left_out = f", {difference.left_out} left out" if difference.left_out else ""
    bar = tested = ""
    if difference.p_value is not None:
        tested = f"{escape(p_value_text(difference.p_value))}, "
    if reach is not None:
        bar = _bar(difference.low, difference.value, difference.high, reach, word)
    return Cell(
        f'<span class="verdict {word.split()[0]}"><span aria-hidden="true">{mark}</span> '
        f"{word}</span> <b>{change(difference.value, difference.unit)}</b>"
        f'<span class="ci">[{change(difference.low, difference.unit)}, '
        f"{change(difference.high, difference.unit)}]</span> "
        f'<span class="ci">{tested}n\u00a0{difference.n}{left_out}</span>'
        f"{bar}",
        difference.value,
    )


def table(
    caption: str,
    heads: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    css: str = "",
    sortable: bool = True,
    row_ids: Sequence[str] = (),
    details: Sequence[str] = (),
) -> str:
    """Return a table with a caption, column heads and, by first cell, row heads.

    Args:
        caption: Escaped markup.
        heads: Plain texts.
        rows: Cells; the first of each row heads it.
        css: Classes of the table.
        sortable: Whether heads become buttons that sort.
        row_ids: Value of ``data-row`` for each row, to link rows and charts.
        details: Escaped markup shown below each row, over its whole width.

    Returns:
        The table in a box that scrolls sideways on narrow screens.
    """
    classes = " ".join([css, *["sortable"][: int(sortable)], *["grouped"][: len(details)]]).strip()
    lines = list(rows)
    is_number = [all(line[place].is_number for line in lines) for place in range(len(heads))]
    head = "".join(
        f'<th scope="col"{" class=num" if lines and is_number[place] else ""}>'
        f"{breakable(item)}</th>"
        for place, item in enumerate(heads)
    )
    body = []
    for index, row in enumerate(lines):
        link = f' data-row="{escape(row_ids[index])}"' if index < len(row_ids) else ""
        first, *rest = row
        cells = f'<th scope="row"{_sort(first)}>{first.markup}</th>' + "".join(
            f"<td{' class=num' if item.is_number else ''}{_sort(item)}>{item.markup}</td>"
            for item in rest
        )
        line = f"<tr{link}>{cells}</tr>"
        if details:
            below = f'<td colspan="{len(heads)}"><div class="below">{details[index]}</div></td>'
            line = f'<tbody>{line}<tr class="details"{link}>{below}</tr></tbody>'
        body.append(line)
    rows_markup = "".join(body) if details else f"<tbody>{''.join(body)}</tbody>"
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f'<table class="{classes}"><caption><span>{caption}</span></caption>'
        f"<thead><tr>{head}</tr></thead>{rows_markup}</table></div>"
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Return a definition list of plain texts."""
    items = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs)
    return f"<dl>{items}</dl>"


def _sort(cell: Cell) -> str:
    if cell.sort is None:
        return ' data-sort=""'
    value = repr(cell.sort) if isinstance(cell.sort, float) else cell.sort
    return f' data-sort="{escape(value)}"'


def _bar(low: float, value: float, high: float, reach: float, verdict: str) -> str:
    """Draw an interval around zero; what it shows stands beside it in figures."""

    def place(number: float) -> float:
        return round(60 + 56 * number / reach, 1) if reach > 0 else 60.0

    return (
        f'<svg class="bar {verdict.split()[0]}" viewBox="0 0 120 12" aria-hidden="true">'
        f'<line class="zero" x1="60" x2="60" y1="0" y2="12"/>'
        f'<line class="whisker" x1="{place(low)}" x2="{place(high)}" y1="6" y2="6"/>'
        f'<circle cx="{place(value)}" cy="6" r="3"/></svg>'
    )
