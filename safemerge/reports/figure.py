"""PNG figures of a run, drawn with matplotlib's Agg canvas and no global state."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safemerge.config.metric import Metric
from safemerge.files import disk_errors, replace_file
from safemerge.front import sound_row
from safemerge.pareto import non_dominated_mask
from safemerge.records import CandidateResult
from safemerge.reports.canvas import (
    FRONT,
    QUIET,
    REFERENCE,
    figure_style,
    new_figure,
    png_bytes,
    write_note,
)
from safemerge.reports.label import place_labels
from safemerge.reports.metric import axes_of
from safemerge.reports.panel import draw_hypervolume, draw_parameters, draw_timings
from safemerge.reports.run import Point, Run, is_measured
from safemerge.reports.wording import DIRECTION_WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def write_figures(run: Run, folder: str | Path) -> list[Path]:
    """Draw every figure of a run as PNG.

    Args:
        run: The run, finished or not.
        folder: Where to write, e.g. ``<run>/figures``; made if missing. Files of the same
            name are replaced whole.

    Returns:
        Paths of ``front.png``, ``hypervolume.png``, ``parameters.png``, ``timings.png``. A
        figure without anything to show says so instead of being left out.

    Raises:
        PreflightError: If the folder cannot be written.
    """
    drawers: dict[str, Callable[[Run], Figure]] = {
        "front.png": draw_front,
        "hypervolume.png": draw_hypervolume,
        "parameters.png": draw_parameters,
        "timings.png": draw_timings,
    }
    folder = Path(folder)
    paths = []
    for name, draw in drawers.items():
        with figure_style():
            content = png_bytes(draw(run))
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / name, content)
        paths.append(folder / name)
    return paths


def draw_front(run: Run) -> Figure:
    """Draw skill against harm with 95 % intervals, front line and labelled reference points.

    Args:
        run: The run.

    Returns:
        The figure: report split where the front is published, else the search split with
        every trial that has values.
    """
    skill, harm = axes_of(run.spec)
    figure, axes = new_figure(7.2, 4.9)
    split = "report" if run.front is not None else "search"
    axes.set_title(f"{run.spec.name}: {skill.name} against {harm.name}, {split} split", pad=22)
    axes.set_xlabel(_axis_label(skill))
    axes.set_ylabel(_axis_label(harm))
    if run.front is None:
        cloud = [trial.result for trial in run.trials if is_measured(trial)]
        _scatter(
            axes,
            cloud,
            skill,
            harm,
            marker="o",
            color=QUIET,
            size=16.0,
            alpha=0.55,
            label="other trials",
        )
    on_front = {point.number for point in run.points}
    others = [point for point in run.references if point.number not in on_front]
    line = _line(axes, run, skill, harm)
    parents = [point for point in run.points if point.trial.role == "reference"]
    sampled = [point for point in run.points if point.trial.role == "sampled"]
    for group, marker, colour, label in (
        (others, "D", REFERENCE, "reference points"),
        (parents, "D", FRONT, "reference points on the front"),
        (sampled, "o", FRONT, "front points"),
    ):
        _error_bars(axes, group, skill, harm, colour)
        _scatter(
            axes,
            [point.shown for point in group],
            skill,
            harm,
            marker=marker,
            color=colour,
            size=38.0,
            alpha=1.0,
            label=label,
        )
    if run.knee is not None and _place(run.knee.shown, skill, harm) is not None:
        x, y = _place(run.knee.shown, skill, harm) or (0.0, 0.0)
        axes.scatter(
            [x],
            [y],
            s=150,
            facecolors="none",
            edgecolors=FRONT,
            linewidths=1.8,
            zorder=6,
            label="knee",
        )
    if not run.points:
        write_note(axes, "no feasible point yet" if run.trials else "no trial has finished yet")
    axes.margins(0.09)
    _better(axes, skill, harm)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.012, 0.995),
            ncols=4,
            fontsize=8.5,
            handletextpad=0.3,
            columnspacing=1.4,
            borderaxespad=0.0,
        )
    knee = [] if run.knee is None or run.knee in parents else [run.knee]
    labelled = [*knee, *others, *parents]
    _label(figure, axes, run, labelled, skill, harm, line)
    return figure


def _better(axes: Axes, skill: Metric, harm: Metric) -> None:
    """Point at the corner where both axes are better."""
    is_right, is_up = skill.direction == "maximize", harm.direction == "maximize"
    arrow = {
        (True, True): "better \u2197",
        (True, False): "better \u2198",
        (False, True): "\u2196 better",
        (False, False): "\u2199 better",
    }[is_right, is_up]
    axes.annotate(
        arrow,
        (float(is_right), float(is_up)),
        xycoords="axes fraction",
        xytext=(-5 if is_right else 5, -5 if is_up else 5),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top" if is_up else "bottom",
        fontsize=8.5,
        color="#4a5462",
    )


def _line(axes: Axes, run: Run, skill: Metric, harm: Metric) -> list[tuple[float, float]]:
    """Draw the boundary that the shown points attain, as a staircase; return its corners."""
    results = [
        point.shown
        for point in run.points
        if run.front is None or sound_row(run.spec, point.shown) is not None
    ]
    places = [place for item in results if (place := _place(item, skill, harm)) is not None]
    if not places:
        return []
    mask = non_dominated_mask(places, [skill.direction, harm.direction])
    kept = sorted(place for place, is_kept in zip(places, mask, strict=True) if is_kept)
    # NOTE: between two points only the worse of both values is attained, never the diagonal.
    where: Literal["pre", "post"] = "pre" if skill.direction == "maximize" else "post"
    axes.step(
        [x for x, _ in kept],
        [y for _, y in kept],
        where=where,
        color=FRONT,
        linewidth=1.6,
        alpha=0.75,
        zorder=2,
    )
    return _corners(kept, where)


def _corners(
    places: list[tuple[float, float]], where: Literal["pre", "post"]
) -> list[tuple[float, float]]:
    corners = places[:1]
    for before, after in pairwise(places):
        turn = (before[0], after[1]) if where == "pre" else (after[0], before[1])
        corners += [turn, after]
    return corners


def _error_bars(axes: Axes, points: list[Point], skill: Metric, harm: Metric, colour: str) -> None:
    for point in points:
        place = _place(point.shown, skill, harm)
        if place is None:
            continue
        ends = []
        for metric in (skill, harm):
            item = point.shown.metrics[metric.name]
            value = item.value or 0.0
            low = value if item.low is None else item.low
            high = value if item.high is None else item.high
            ends.append(
                [[metric.scale * max(value - low, 0.0)], [metric.scale * max(high - value, 0.0)]]
            )
        axes.errorbar(
            [place[0]],
            [place[1]],
            xerr=ends[0],
            yerr=ends[1],
            fmt="none",
            ecolor=colour,
            elinewidth=0.9,
            alpha=0.42,
            capsize=0,
            zorder=3,
        )


def _scatter(
    axes: Axes,
    results: list[CandidateResult | None],
    skill: Metric,
    harm: Metric,
    *,
    marker: str,
    color: str,
    size: float,
    alpha: float,
    label: str,
) -> None:
    places = [_place(item, skill, harm) for item in results if item is not None]
    kept = [place for place in places if place is not None]
    if kept:
        axes.scatter(
            [x for x, _ in kept],
            [y for _, y in kept],
            s=size,
            marker=marker,
            color=color,
            alpha=alpha,
            linewidths=0.7,
            edgecolors="white",
            zorder=5,
            label=label,
        )


def _label(
    figure: Figure,
    axes: Axes,
    run: Run,
    points: list[Point],
    skill: Metric,
    harm: Metric,
    line: list[tuple[float, float]],
) -> None:
    texts: list[tuple[float, float, str, dict[str, Any]]] = []
    for point in points:
        place = _place(point.shown, skill, harm)
        if place is None:
            continue
        is_off = point.number not in {item.number for item in run.points}
        is_knee = run.knee is not None and run.knee.number == point.number
        style: dict[str, Any] = {
            "color": REFERENCE if is_off else FRONT,
            "fontweight": "bold" if is_knee else "normal",
            "fontsize": 8.5,
        }
        texts.append((*place, f"knee: {point.name}" if is_knee else point.name, style))
    taken = [
        place
        for item in (*run.points, *run.references)
        if (place := _place(item.shown, skill, harm)) is not None
    ]
    place_labels(figure, axes, texts, taken=taken, line=line)


def _place(result: CandidateResult, skill: Metric, harm: Metric) -> tuple[float, float] | None:
    ends = [result.metrics.get(metric.name) for metric in (skill, harm)]
    values = [None if item is None else item.value for item in ends]
    if values[0] is None or values[1] is None:
        return None
    return skill.scale * values[0], harm.scale * values[1]


def _axis_label(metric: Metric) -> str:
    sign = "%, " if metric.unit == "share" else ""
    return f"{metric.name} ({sign}{DIRECTION_WORDS[metric.direction]})"
