"""The charts' places in the page, with their controls, and the table of all trials."""

from __future__ import annotations

from markupsafe import Markup

from safemerge.config.metric import metrics_of
from safemerge.records import TrialRecord
from safemerge.reports.markup import (
    Cell,
    joined_markup,
    number_cell,
    paragraph,
    piece,
    table,
)
from safemerge.reports.metric import axes_of
from safemerge.reports.run import Run, outcome
from safemerge.reports.section_importance import importance_table
from safemerge.reports.wording import DIRECTION_WORDS, amount, counted, joined

MAX_REASONS = 12
"""Reasons shown of those that trials failed for."""


def plot_section(run: Run) -> Markup:
    """Return the interactive scatter's controls, legend and place."""
    skill, harm = axes_of(run.spec)
    metrics = metrics_of(run.spec)

    choices = [
        (f"{name} ({DIRECTION_WORDS[item.direction]})", name) for name, item in metrics.items()
    ]
    is_published = run.front is not None
    is_reported = is_published and bool(run.points)
    return piece(
        "plot", choices, skill.name, harm.name, is_published, is_reported, bool(run.points)
    )


def trials_section(run: Run) -> Markup:
    """Return how the trials ended, and the place of their table, which the script fills."""
    if not run.trials:
        return paragraph("No trial has finished yet.")
    return joined_markup([paragraph(counts_text(run)), _failures(run), piece("trials")])


def counts_text(run: Run) -> str:
    """Say how far the run is, and how its trials ended."""
    counts = run.counts
    num_again = sum(trial.is_tried_again for trial in run.trials)
    words = [
        counted(counts["feasible"], "feasible trial"),
        f"{counts['infeasible']} infeasible",
        f"{counts['broken']} broken",
        *([f"{counts['pruned']} pruned"] if run.spec.rung is not None else []),
        f"{counts['failed'] - num_again} failed",
        *([f"{num_again} tried again"] if num_again else []),
    ]
    lead = f"{run.num_sampled} of {run.spec.num_trials} sampled trials finished"
    if run.front is not None and run.front.covered:
        lead = (
            f"{counted(run.num_sampled, 'sampled trial')} finished: every recipe of the search "
            f"spaces, within a budget of {run.spec.num_trials}"
        )
    elif run.front is not None and run.front.ended_by is not None:
        lead += f" ({run.front.ended_by})"
    exact = {trial.exact_of for trial in run.trials if trial.state == "COMPLETE"} - {None}
    if exact:
        lead += f", {len(exact)} of them again at exact values"
    num_references = sum(
        trial.role == "reference" and not trial.is_tried_again for trial in run.trials
    )
    if num_references:
        lead += f", and {counted(num_references, 'reference point')}"
    return f"{lead}; {joined(words)}."


def _failures(run: Run) -> Markup:
    """Return what failed, broke or was pruned, and why: by reason, the most frequent first."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for trial in run.trials:
        if (how := outcome(trial)) in ("failed", "broken", "pruned"):
            key = (how, trial.reason or "no reason given")
            by_reason.setdefault(key, []).append(trial_name(trial))
    rows = [
        [Cell(how), Cell(reason), number_cell(len(names), str(len(names))), Cell(_some(names))]
        for (how, reason), names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    if not rows:
        return Markup()
    caption = "What failed and why."
    if len(rows) > MAX_REASONS:
        caption += f" The {MAX_REASONS} most frequent of {len(rows)} reasons."
    return table(
        caption,
        ["how it ended", "reason", "trials", "which"],
        rows[:MAX_REASONS],
        css="failures",
        sortable=False,
    )


def _some(names: list[str]) -> str:
    return joined(names) if len(names) <= 6 else f"{', '.join(names[:6])} \u2026"


def trial_name(trial: TrialRecord) -> str:
    """Return ``trial 17``, or the label of a reference point."""
    return trial.label if trial.role == "reference" else f"trial {trial.number}"


def trial_notes(trial: TrialRecord) -> list[str]:
    """Return what must be known of a trial beside its name."""
    notes = []
    if trial.start is not None:
        notes.append(f"for start {trial.start}")
    if trial.interpolated:
        notes.append("estimated between trained models")
    if trial.exact_of is not None:
        notes.append(f"trial {trial.exact_of} at its exact values")
    if trial.is_tried_again:
        notes.append("tried again")
    return notes


def hypervolume_section(run: Run) -> Markup:
    """Return the hypervolume's place, with its values in words."""
    steps = run.hypervolume_steps
    sentences = []
    if steps:
        sentences.append(
            f"After {counted(len(steps), 'trial')} the search split's hypervolume is "
            f"{steps[-1].value:.4f}."
        )
    if run.front is not None:
        sentences.append(
            "As published: "
            f"{_volume(run.front.hypervolume_search)} on the search split, "
            f"{_volume(run.front.hypervolume_report)} on the report split (only points that keep "
            "every limit there)."
        )
    metrics = metrics_of(run.spec)
    corner = ", ".join(
        f"{item.metric} {amount(item.reference, metrics[item.metric].unit)}"
        for item in run.spec.objectives
    )
    sentences.append(
        f"The hypervolume is the area of outcomes that the front dominates, measured "
        f"from the study's reference value: {corner}. More is better."
    )
    return paragraph(" ".join(sentences)) + Markup('<div class="chart" id="hypervolume"></div>')


def parameters_section(run: Run) -> Markup:
    """Return which parameters go with which objective, and the small multiples' place."""
    if not any(trial.params and trial.result is not None for trial in run.trials):
        return paragraph("No sampled trial has values yet.")
    lead = (
        "Each sampled trial with values, on the search split. A pattern here is a hint, not a "
        "cause: the sampler visits some regions more than others."
    )
    chart = Markup('<div class="multiples" id="parameters"></div>')
    return joined_markup([paragraph(lead), importance_table(run), chart])


def _volume(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
