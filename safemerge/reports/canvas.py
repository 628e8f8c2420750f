"""What all figures share: colours, a style that is put back, a canvas without global state."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT = "#1f5fae"
REFERENCE = "#b4511a"
QUIET = "#8b93a1"
INK = "#1b2430"
GRID = "#e3e7ed"

_STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#98a1ae",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#4a5462",
    "ytick.color": "#4a5462",
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "text.parse_math": False,
}
_DPI = 160


def write_note(axes: Axes, text: str) -> None:
    """Write a sentence across an empty plot."""
    axes.text(
        0.5,
        0.5,
        text,
        transform=axes.transAxes,
        ha="center",
        va="center",
        fontsize=11,
        color="#4a5462",
    )


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one plot."""
    figure = empty_figure(width, height)
    return figure, figure.add_subplot()


def empty_figure(width: float, height: float) -> Figure:
    """Return a figure on its own Agg canvas, without pyplot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the style, and put every matplotlib setting back afterwards."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        yield


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as PNG."""
    buffer = io.BytesIO()
    # NOTE: without metadata, so that the same run gives the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
