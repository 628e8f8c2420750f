"""Figures about the search itself: hypervolume, parameters, timings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.config.metric import metrics_of
from safemerge.front import hypervolume_steps
from safemerge.reports.canvas import (
    FRONT,
    QUIET,
    REFERENCE,
    empty_figure,
    new_figure,
    write_note,
)
from safemerge.reports.run import Run, is_measured
from safemerge.reports.timing import PARTS, summarize_timings
from safemerge.reports.wording import counted, percent, seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PART_COLOURS = {"swap": "#b4511a", "generate": "#1f5fae", "score": "#3f8f6b", "other": "#c3c9d2"}


def draw_hypervolume(run: Run) -> Figure:
    """Draw the hypervolume of the search split over finished trials."""
    figure, axes = new_figure(6.4, 3.4)
    axes.set_title(f"{run.spec.name}: hypervolume over trials, search split")
    axes.set_xlabel("finished trials, those without a value included")
    axes.set_ylabel("hypervolume")
    steps = run.hypervolume_steps
    if steps:
        axes.step(
            [0, *(step.finished for step in steps)],
            [0.0, *(step.value for step in steps)],
            where="post",
            color=FRONT,
            linewidth=2,
        )
        axes.set_xlim(0, len(steps) + 0.5)
        axes.set_ylim(bottom=0)
        axes.annotate(
            f"{steps[-1].value:.3f}",
            (len(steps), steps[-1].value),
            xytext=(0, 5),
            textcoords="offset points",
            ha="right",
            color=FRONT,
            fontweight="bold",
        )
        known = [trial for trial in run.trials if trial.role == "reference"]
        if known:
            alone = hypervolume_steps(run.spec, known)[-1].value
            axes.axhline(alone, color=REFERENCE, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"reference points alone: {alone:.3f}",
                (len(steps), alone),
                xytext=(0, -5),
                textcoords="offset points",
                ha="right",
                va="top",
                color=REFERENCE,
                fontsize=8.5,
            )
        if steps[-1].value == 0:
            write_note(axes, "no trial is feasible and better than the reference values")
    else:
        write_note(axes, "no trial has finished yet")
    return figure


def draw_parameters(run: Run) -> Figure:
    """Draw small multiples: each objective against each varied parameter, search split."""
    trials = [item for item in run.trials if item.role == "sampled" and is_measured(item)]
    names = sorted({name for trial in trials for name in trial.params})
    metrics = metrics_of(run.spec)
    objectives = [metrics[item.metric] for item in run.spec.objectives]
    columns = max(1, min(6, len(names)))
    bands = max(1, -(-len(names) // columns))
    figure = empty_figure(2.3 * columns + 0.8, 2.1 * bands * len(objectives) + 0.6)
    if not names:
        axes = figure.add_subplot()
        write_note(axes, "no sampled trial has values yet")
        axes.set_axis_off()
        return figure
    figure.suptitle(
        f"{run.spec.name}: objectives against parameters, search split",
        x=0.01,
        ha="left",
        fontsize=11,
        fontweight="bold",
    )
    on_front = {point.number for point in run.points}
    grid = figure.subplots(bands * len(objectives), columns, squeeze=False, sharey="row")
    for row, objective in enumerate(objectives):
        for place in range(bands * columns):
            axes = grid[row * bands + place // columns][place % columns]
            if place >= len(names):
                axes.set_axis_off()
                continue
            name = names[place]
            for front in (False, True):
                chosen = [
                    item
                    for item in trials
                    if name in item.params and (item.number in on_front) == front
                ]
                axes.scatter(
                    [_coordinate(item.params[name]) for item in chosen],
                    [objective.scale * item.objectives[objective.name] for item in chosen],
                    s=26 if front else 15,
                    color=FRONT if front else QUIET,
                    marker="o" if front else "x",
                    linewidths=1.0,
                    alpha=1 if front else 0.8,
                )
            axes.set_xlabel(name.removeprefix("method."), fontsize=8)
            axes.tick_params(labelsize=8)
            if place % columns == 0:
                axes.set_ylabel(f"{objective.name}{objective.sign}", fontsize=8)
    figure.text(
        0.99,
        0.995,
        "filled: on the front   \u00d7: other trials",
        ha="right",
        va="top",
        fontsize=8,
        color="#4a5462",
    )
    return figure


def draw_timings(run: Run) -> Figure:
    """Draw seconds per candidate by part, in the order of evaluation."""
    figure, axes = new_figure(7.2, 3.4)
    summary = summarize_timings(run)
    share = summary.generating_share
    subtitle = "no timings yet" if share is None else f"{percent(share)} of the time generating"
    axes.set_title(f"{run.spec.name}: seconds a candidate, {subtitle}", pad=20)
    axes.set_xlabel("evaluations: search split, then report split")
    axes.set_ylabel("seconds")
    axes.grid(visible=False, axis="x")
    base = [0.0] * len(summary.candidates)
    for part in PARTS:
        heights = [item.seconds_by_part[part] for item in summary.candidates]
        if not any(heights):
            continue
        total = seconds(summary.seconds_by_part[part])
        axes.bar(
            range(1, len(base) + 1),
            heights,
            bottom=base,
            width=0.86,
            color=PART_COLOURS[part],
            label=f"{part} ({total})",
        )
        base = [low + height for low, height in zip(base, heights, strict=True)]
    if share is None:
        write_note(axes, f"{counted(len(run.trials), 'trial')}, none with timings")
    else:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.012, 0.99),
            ncols=4,
            fontsize=8.5,
            borderaxespad=0.0,
        )
    return figure


def _coordinate(value: float | int | bool | str) -> float | str:
    return str(value) if isinstance(value, bool | str) else float(value)
