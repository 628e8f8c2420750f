"""Pieces of the page, made by Jinja2: whatever is not markup already is escaped."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from markupsafe import escape as escaped

from safemerge.records import MetricEstimate
from safemerge.reports.comparison import PairedDifference
from safemerge.reports.wording import NO_VALUE, amount, change, interval, p_value_text


@dataclass(frozen=True)
class Cell:
    """One table cell: its text or markup, and what it sorts by."""

    content: str
    sort: float | str | None = None
    is_number: bool = False

    @property
    def sort_text(self) -> str:
        """What the page's script sorts by; empty sorts last."""
        return "" if self.sort is None else str(self.sort)


class Section(NamedTuple):
    """One part of a page."""

    id: str
    short: str
    """In the navigation."""
    title: str
    content: Markup


@functools.cache
def environment() -> Environment:
    """Return the templates of pages, with autoescape."""
    return Environment(
        loader=PackageLoader("safemerge.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def page(
    name: str,
    kind: str,
    status: Markup,
    sections: Sequence[Section],
    *,
    payload: str = "",
    script: str = "",
) -> str:
    """Return a whole HTML document that loads nothing.

    Args:
        name: Of the study or measurement.
        kind: What the page is, e.g. ``report``.
        status: Shown under the name.
        sections: In order.
        payload: JSON for the script, safe inside a script element.
        script: JavaScript of ours.
    """
    return (
        environment()
        .get_template("page.html")
        .render(
            name=name,
            kind=kind,
            status=status,
            sections=sections,
            css=Markup(asset("report.css")),
            payload=Markup(payload),  # escaped for JSON in a script by whoever made it
            script=Markup(script),
        )
    )


def fill(template: str, **values: object) -> Markup:
    """Fill the slots of a short template, e.g. ``<b>{{ name }}</b>``."""
    return Markup(_short(template).render(values))


def joined_markup(parts: Iterable[str]) -> Markup:
    """Return parts one after the other; those that are plain text are escaped."""
    return Markup("").join(parts)


def breakable(text: str) -> Markup:
    """Return text that may wrap after the dots and underscores of metric names."""
    return Markup(str(escaped(text)).replace("_", "_<wbr>").replace(".", ".<wbr>"))


def code(text: object) -> Markup:
    """Return text as code."""
    return fill("<code>{{ text }}</code>", text=text)


def quiet(text: str) -> Markup:
    """Return text that stands back."""
    return fill('<span class="quiet">{{ text }}</span>', text=text)


def paragraph(content: str, *, css: str = "") -> Markup:
    """Return a paragraph."""
    return piece("paragraph", content, css)


def items(contents: Iterable[str]) -> Markup:
    """Return a list."""
    return piece("items", list(contents))


def text_cell(text: object, *, sort: float | str | None = None) -> Cell:
    """Return a cell of plain text."""
    return Cell(str(text), sort if sort is not None else str(text))


def number_cell(value: float | None, text: str) -> Cell:
    """Return a right-aligned cell; cells without a value sort last."""
    return Cell(text, value, is_number=True)


def no_number(text: str) -> Cell:
    """Return a cell of a column of numbers that says why there is none."""
    return Cell(quiet(text), None, is_number=True)


def estimate_cell(estimate: MetricEstimate | None, *, is_broken: bool = False) -> Cell:
    """Return value, interval and n; marked if it breaks its constraint."""
    if estimate is None:
        return no_number("not measured")
    counts = f"n\u00a0{estimate.n}"
    if estimate.unscored:
        counts += f", {estimate.unscored}\u00a0unscored"
    if estimate.value is None:
        text = fill('{{ none }}<span class="ci">{{ counts }}</span>', none=NO_VALUE, counts=counts)
        return Cell(text, None, is_number=True)
    value = amount(estimate.value, estimate.unit, sign=False)
    content = piece("estimate", value, is_broken, interval(estimate), counts)
    return Cell(content, estimate.value, is_number=True)


def difference_cell(difference: PairedDifference, *, reach: float | None = None) -> Cell:
    """Return a paired difference in words, in figures, and as an interval drawn to scale.

    Args:
        difference: The difference.
        reach: Largest absolute end among the intervals of the column, for a common scale;
            if left out, the interval is given in figures only.

    Returns:
        The cell.
    """
    ends = (difference.low, difference.value, difference.high)
    low, value, high = ends
    if value is None or low is None or high is None:
        return Cell(quiet("no sample scored on both sides"), None)
    word = difference.verdict
    mark = {"better": "\u25b2", "worse": "\u25bc"}.get(word, "\u2248")
    tested = f"n\u00a0{difference.n}"
    if difference.p_value is not None:
        tested = f"{p_value_text(difference.p_value)}, {tested}"
    if difference.left_out:
        tested += f", {difference.left_out} left out"
    places = None
    if reach is not None:
        # The bar is 120 wide, and 0 in its middle.
        places = [
            round(60 + (56 * end / reach if reach > 0 else 0), 1) for end in (low, value, high)
        ]
    least, center, most = (change(end, difference.unit) for end in (low, value, high))
    shown = f"[{least}, {most}]"
    return Cell(
        piece("difference", word.split()[0], mark, word, center, shown, tested, places),
        value,
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
) -> Markup:
    """Return a table with a caption, column heads and, by first cell, row heads.

    Args:
        caption: Text or markup.
        heads: Plain texts.
        rows: Cells; the first of each row heads it.
        css: Classes of the table.
        sortable: Whether heads become buttons that sort.
        row_ids: Value of ``data-row`` for each row, to link rows and charts.
        details: Text or markup shown below each row, over its whole width.

    Returns:
        The table in a box that scrolls sideways on narrow screens.
    """
    lines = list(rows)
    classes = " ".join([css, *["sortable"][: int(sortable)], *["grouped"][: len(details)]]).strip()
    is_number = [
        bool(lines) and all(line[place].is_number for line in lines) for place in range(len(heads))
    ]
    shown = list(zip(map(breakable, heads), is_number, strict=True))
    links = list(row_ids) or [""] * len(lines)
    return piece("table", caption, shown, lines, classes, links, details)


def definitions(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Return a definition list."""
    return piece("definitions", list(pairs))


def piece(name: str, *values: object) -> Markup:
    """Return a piece of ``templates/pieces.html``."""
    made: Any = getattr(environment().get_template("pieces.html").module, name)(*values)
    return Markup(made)


@functools.cache
def _short(template: str) -> Any:
    return environment().from_string(template)


@functools.cache
def asset(name: str) -> str:
    """Return a file that pages embed, e.g. ``report.js``."""
    return resources.files("safemerge.reports").joinpath(name).read_text(encoding="utf-8")
