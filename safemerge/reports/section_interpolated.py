"""What came of weights between trained models: how many, how many trained for, how far off."""

from __future__ import annotations

from statistics import mean

from markupsafe import Markup

from safemerge.config.metric import metrics_of
from safemerge.records import TrialRecord
from safemerge.reports.markup import fill, paragraph
from safemerge.reports.run import Run, is_measured
from safemerge.reports.wording import amount, counted, joined


def interpolated_section(run: Run) -> Markup:
    """Return what interpolation did, in words; empty if nothing was interpolated."""
    estimates = {trial.number: trial for trial in run.trials if trial.interpolated}
    scored = {trial.candidate for trial in estimates.values() if trial.state == "COMPLETE"}
    if not scored:
        return Markup()
    pairs = [
        (estimates[trial.exact_of], trial)
        for trial in run.trials
        if trial.exact_of in estimates and is_measured(trial)
    ]
    lead = (
        f"{counted(len(scored), 'recipe')} took weights on the "
        "straight line between two trained models; these are estimates, and none is on the "
        f"front. What the front would have held was trained at its own values and scored again: "
        f"{len(pairs)}."
    )
    settled = {trial.exact_of for _, trial in pairs}
    lost = {trial.exact_of for trial in run.trials if trial.state == "FAIL"} - settled - {None}
    failed = (
        f"{counted(len(lost), 'more recipe', 'more recipes')} could not be trained or scored at "
        "its own values, so the front may lack points."
        if lost
        else ""
    )
    text = " ".join(part for part in (lead, failed, _shift(run, pairs)) if part)
    return paragraph(fill("<b>Between trained values.</b> {{ text }}", text=text))


def _shift(run: Run, pairs: list[tuple[TrialRecord, TrialRecord]]) -> str:
    """How far the estimates were off, on the search split."""
    if not pairs:
        return ""
    known = metrics_of(run.spec)
    shifts = []
    for goal in run.spec.objectives:
        metric = known[goal.metric]
        moved = [
            abs(exact.objectives[metric.name] - estimate.objectives[metric.name])
            for estimate, exact in pairs
        ]
        off = amount(mean(moved), metric.unit, sign=False)
        most = amount(max(moved), metric.unit, sign=False)
        shifts.append(f"{metric.name} {off} (at most {most})")
    return f"Training moved, on average over these, search split: {joined(shifts)}."
