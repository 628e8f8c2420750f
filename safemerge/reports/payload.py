"""What the page's charts are drawn from: one JSON document, without any generated text."""

from __future__ import annotations

import json
from typing import Any

from safemerge.config.metric import metrics_of
from safemerge.front import hypervolume_steps, sound_row
from safemerge.records import CandidateResult, TrialRecord
from safemerge.reports.family import family_of
from safemerge.reports.metric import axes_of
from safemerge.reports.run import Run, outcome
from safemerge.reports.timing import PARTS, summarize_timings
from safemerge.reports.wording import coefficients


def payload(run: Run) -> dict[str, Any]:
    """Collect the numbers that the charts show.

    Args:
        run: The run.

    Returns:
        A JSON-ready document: metrics, trials with estimates as
        [value, low, high, n, unscored], what is believed of published points (means, intervals,
        chance of the front; null without a posterior), hypervolume steps and timings.
    """
    metrics = metrics_of(run.spec)
    skill, harm = axes_of(run.spec)
    report_by_number = {
        point.number: point.report
        for point in (*run.references, *run.points)
        if point.report is not None
    }
    front = {point.number for point in run.points}
    beliefs = {
        point.number: point.belief.resolved() for point in run.points if point.belief is not None
    }
    references = {point.number for point in run.references}
    steps = hypervolume_steps(run.spec, run.trials)
    alone = hypervolume_steps(
        run.spec, [trial for trial in run.trials if trial.role == "reference"]
    )
    timings = summarize_timings(run)
    return {
        "study": run.spec.name,
        "published": run.front is not None,
        "axes": [skill.name, harm.name],
        "objectives": [item.metric for item in run.spec.objectives],
        "metrics": {
            name: {"direction": item.direction, "use": item.use, "scale": item.scale}
            for name, item in metrics.items()
        },
        "budgets": {
            item.metric: {"budget": item.budget, "direction": item.direction}
            for item in run.spec.constraints
        },
        "trials": [
            {
                "number": trial.number,
                "label": trial.label,
                "name": trial.label if trial.role == "reference" else f"trial {trial.number}",
                "role": trial.role,
                "outcome": outcome(trial),
                "reason": trial.reason or "",
                "front": trial.number in front,
                "reference": trial.number in references,
                "knee": run.knee is not None and run.knee.number == trial.number,
                "belief": beliefs.get(trial.number),
                "params": trial.params,
                "coefficients": coefficients(trial.recipe, trial.params),
                "search": _estimates(trial.result, trial),
                "report": _estimates(report_by_number.get(trial.number), trial),
                "sound": {
                    "search": _is_sound(run, trial.result),
                    "report": _is_sound(run, report_by_number.get(trial.number)),
                },
            }
            for trial in run.trials
        ],
        "comparisons": [] if run.front is None else family_of(run).document(),
        "hypervolume": [[step.finished, step.number, step.value] for step in steps],
        "belief": None
        if run.front is None or run.front.belief is None
        else run.front.belief.resolved(),
        "hypervolume_references": alone[-1].value if alone else None,
        "timings": {
            "parts": list(PARTS),
            "candidates": [
                [item.number, item.split, *(item.seconds_by_part[part] for part in PARTS)]
                for item in timings.candidates
            ],
        },
    }


def payload_json(run: Run) -> str:
    """Return the payload as JSON that is safe inside a ``<script>`` element."""
    text = json.dumps(payload(run), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # NOTE: "</script>" or "<!--" in a label would end the element, whatever its type.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _is_sound(run: Run, result: CandidateResult | None) -> bool:
    return result is not None and sound_row(run.spec, result) is not None


def _estimates(
    result: CandidateResult | None, trial: TrialRecord
) -> dict[str, list[float | int | None]] | None:
    # NOTE: a broken candidate's figures are not shown: degenerate text can look safe.
    if result is None or outcome(trial) == "broken":
        return None
    return {
        name: [item.value, item.low, item.high, item.n, item.unscored]
        for name, item in result.metrics.items()
    }
