"""Labels beside points of a figure, placed so that they do not cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAPS = (7.0, 14.0, 24.0)
_SIDES = (
    (1, 1, "left", "bottom"),
    (1, -1, "left", "top"),
    (-1, 1, "right", "bottom"),
    (-1, -1, "right", "top"),
    (0, 1, "center", "bottom"),
    (0, -1, "center", "top"),
)
_MARK = 6.0
"""Half the room that a point's mark takes, in pixels at 72 dpi."""


def place_labels(
    figure: Figure,
    axes: Axes,
    texts: Sequence[tuple[float, float, str, dict[str, Any]]],
    *,
    taken: Sequence[tuple[float, float]],
    line: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each text beside its point, at the side that covers the fewest marks and texts.

    Greedy, in the order given. A label that had to move away is joined to its point by a
    thin line.

    Args:
        figure: The figure, with its axes' limits final but for layout.
        axes: Where the points are.
        texts: (x, y, text, text properties) in data units.
        taken: Places of all marks, in data units.
        line: Corners of a line that labels keep off where they can, in data units.
    """
    from matplotlib.path import Path
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure.canvas.draw()
    scale = figure.dpi / 72
    marks = []
    for place in taken:
        x, y = axes.transData.transform(place)
        half = _MARK * scale
        marks.append(Bbox.from_extents(x - half, y - half, x + half, y + half))
    track = Path(axes.transData.transform(line)) if len(line) > 1 else None
    halo = [withStroke(linewidth=2.5, foreground="white")]
    frame = axes.get_window_extent()
    placed: list[Bbox] = []
    for x, y, text, style in texts:
        best: tuple[float, Any, Bbox] | None = None
        for gap in _GAPS:
            for across, up, horizontal, vertical in _SIDES:
                label = axes.annotate(
                    text,
                    (x, y),
                    xytext=(across * gap, up * gap * 0.7),
                    textcoords="offset points",
                    ha=horizontal,
                    va=vertical,
                    zorder=8,
                    annotation_clip=False,
                    path_effects=halo,
                    arrowprops={"arrowstyle": "-", "color": "#98a1ae", "lw": 0.7, "shrinkB": 4}
                    if gap > _GAPS[0]
                    else None,
                    **style,
                )
                box = label.get_window_extent()
                cost = 10.0 * sum(map(box.overlaps, placed)) + sum(map(box.overlaps, marks))
                cost += 0.0 if frame.containsx(box.x1) and frame.containsx(box.x0) else 6.0
                cost += 0.0 if frame.containsy(box.y1) and frame.containsy(box.y0) else 6.0
                if track is not None and track.intersects_bbox(box, filled=False):
                    cost += 0.9
                cost += 0.4 * _GAPS.index(gap)
                if best is None or cost < best[0] - 1e-9:
                    if best is not None:
                        best[1].remove()
                    best = (cost, label, box)
                else:
                    label.remove()
        if best is not None:
            placed.append(best[2])
