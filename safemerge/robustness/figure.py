"""Figures of a robustness measurement: harm against p and n, loss along the attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from safemerge.reports.canvas import empty_figure, figure_style, png_bytes, write_note
from safemerge.robustness.results import Condition, MethodResult, RobustnessResults

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#4a5462", "#1f5fae", "#b4511a", "#3f8f6b", "#8a4fa3", "#a3293a", "#8b93a1")
_MARKERS = "osD^vPX"
_MAX_PANELS = 6

Place = Callable[[Condition], float]
Group = Callable[[Condition], tuple[object, ...]]


def robustness_figures(results: RobustnessResults) -> dict[str, bytes]:
    """Draw every figure as PNG.

    Args:
        results: Of a measurement, finished or not.

    Returns:
        Content by file name: ``harm_by_poison.png``, ``harm_by_samples.png``,
        ``loss_curves.png``, and ``harm_curves.png`` where the harmful score was measured along
        the attack. A figure without anything to show says so.
    """
    drawn: dict[str, Callable[[], Figure]] = {
        "harm_by_poison.png": lambda: _draw_harm(
            results,
            title="Harmful score against the poison ratio",
            axis="poison ratio p",
            place=lambda item: item.poison_ratio,
            group=lambda item: (item.mode, item.num_samples, item.learning_rate),
            name=lambda item: f"{item.mode}, n = {item.num_samples}, lr = {item.learning_rate:g}",
        ),
        "harm_by_samples.png": lambda: _draw_harm(
            results,
            title="Harmful score against the number of samples",
            axis="samples n of the attack",
            place=lambda item: float(item.num_samples),
            group=lambda item: (item.mode, item.poison_ratio, item.learning_rate),
            name=lambda item: (
                f"{item.mode}, p = {item.poison_ratio:g}, lr = {item.learning_rate:g}"
            ),
        ),
        "loss_curves.png": lambda: _draw_curves(
            results,
            title="Loss on held-out harmful rows along the attack",
            nothing="no loss was measured",
            axis="cross-entropy (nats a token)",
            curve=lambda item: item.curve,
        ),
    }
    if any(item.harm_curve for item in results.results):
        drawn["harm_curves.png"] = lambda: _draw_curves(
            results,
            title="Harmful score along the attack",
            nothing="it was measured at the end alone",
            axis="harmful score",
            curve=lambda item: item.harm_curve,
        )
    figures = {}
    for name, draw in drawn.items():
        with figure_style():
            figures[name] = png_bytes(draw())
    return figures


def _draw_harm(
    results: RobustnessResults,
    *,
    title: str,
    axis: str,
    place: Place,
    group: Group,
    name: Callable[[Condition], str],
) -> Figure:
    """One panel for each group of attacks with several places; lines are methods."""
    attacked = [item for item in results.results if item.condition.mode != "before"]
    panels: dict[tuple[object, ...], list[MethodResult]] = {}
    for item in attacked:
        panels.setdefault(group(item.condition), []).append(item)
    several = {
        key: found
        for key, found in panels.items()
        if len({place(item.condition) for item in found}) > 1
    }
    figure, axes = _panels(title, len(several), f"every attack has one {axis.split()[0]}")
    for plot, found in zip(axes, several.values(), strict=False):
        plot.set_title(name(found[0].condition), fontsize=9.5, fontweight="normal")
        plot.set_xlabel(axis)
        plot.set_ylim(-3, 103)
        for index, method in enumerate(results.methods):
            points = sorted(
                (place(item.condition), item.harmful_score.mean, item.harmful_score.sd or 0.0)
                for item in found
                if item.method == method and item.harmful_score is not None
            )
            if points:
                _line(plot, points, index, method)
    for plot in axes[:1]:
        plot.set_ylabel("harmful score (%), mean \u00b1 sd over seeds")
    _legend(figure, axes)
    return figure


def _line(
    plot: Axes, points: Sequence[tuple[float, float, float]], index: int, label: str
) -> None:
    where, means, sds = zip(*points, strict=True)
    plot.errorbar(
        where,
        [100 * value for value in means],
        yerr=[100 * value for value in sds],
        color=_COLOURS[index % len(_COLOURS)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=5,
        linewidth=1.6,
        capsize=3,
        label=label,
    )


def _draw_curves(
    results: RobustnessResults,
    *,
    title: str,
    nothing: str,
    axis: str,
    curve: Callable[[MethodResult], Sequence[tuple[int, float, float | None]]],
) -> Figure:
    """One panel an attack that has a curve; the band is one sd over seeds."""
    drawn = [item for item in results.results if len(curve(item)) > 1]
    conditions = list(dict.fromkeys(item.condition for item in drawn))
    figure, axes = _panels(title, len(conditions), nothing)
    for plot, condition in zip(axes, conditions, strict=False):
        plot.set_title(condition.label, fontsize=9.5, fontweight="normal")
        plot.set_xlabel("optimiser steps")
        for item in drawn:
            if item.condition != condition:
                continue
            index = results.methods.index(item.method)
            colour = _COLOURS[index % len(_COLOURS)]
            steps = [step for step, _, _ in curve(item)]
            means = [mean for _, mean, _ in curve(item)]
            sds = [sd or 0.0 for _, _, sd in curve(item)]
            plot.plot(steps, means, color=colour, linewidth=1.6, label=item.method)
            low = [mean - sd for mean, sd in zip(means, sds, strict=True)]
            high = [mean + sd for mean, sd in zip(means, sds, strict=True)]
            plot.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    for plot in axes[:1]:
        plot.set_ylabel(axis)
    _legend(figure, axes)
    return figure


def _panels(title: str, wanted: int, nothing: str) -> tuple[Figure, list[Axes]]:
    shown = min(wanted, _MAX_PANELS)
    columns = max(1, min(3, shown))
    bands = max(1, -(-shown // columns))
    figure = empty_figure(max(6.4, 3.6 * columns), 3.3 * bands + 0.5)
    more = f" (first {shown} of {wanted})" if wanted > shown else ""
    figure.suptitle(title + more, x=0.01, ha="left", fontsize=11, fontweight="bold")
    if not shown:
        axes = figure.add_subplot()
        write_note(axes, nothing)
        axes.set_axis_off()
        return figure, []
    grid = figure.subplots(bands, columns, squeeze=False, sharey=True)
    flat = [plot for row in grid for plot in row]
    for plot in flat[shown:]:
        plot.set_axis_off()
    return figure, flat[:shown]


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    known: dict[str, Artist] = {}
    for plot in axes:
        for handle, label in zip(*plot.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    if known:
        figure.legend(
            list(known.values()),
            list(known),
            loc="outside lower center",
            ncols=min(6, len(known)),
            fontsize=8.5,
        )
