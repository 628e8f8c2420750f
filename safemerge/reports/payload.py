"""What the page's charts are drawn from: one JSON document, without any generated text."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from safemerge.config.mergekit_export import mergekit_of_recipe
from safemerge.config.metric import metrics_of
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import ConfigError
from safemerge.front import hypervolume_steps, sound_row
from safemerge.records import CandidateResult, TrialRecord
from safemerge.reports.family import family_of
from safemerge.reports.metric import axes_of
from safemerge.reports.run import Point, Run, outcome
from safemerge.reports.section_front import export_command
from safemerge.reports.section_trials import trial_name, trial_notes
from safemerge.reports.timing import PARTS, span_of, summarize_timings
from safemerge.reports.verdict import tied_points
from safemerge.reports.wording import coefficients


def payload(run: Run) -> dict[str, Any]:
    """Collect the numbers that the charts show.

    Args:
        run: The run.

    Returns:
        A JSON-ready document: metrics, trials by number, with [value, low, high, n, unscored] for
        each metric and what is believed of published points (means, intervals, chance of the
        front; left out without a posterior), what it takes to export a point, comparisons,
        hypervolume steps and timings.
    """
    metrics = metrics_of(run.spec)
    skill, harm = axes_of(run.spec)
    points = {point.number: point for point in (*run.references, *run.points)}
    steps = run.hypervolume_steps
    alone = hypervolume_steps(
        run.spec, [trial for trial in run.trials if trial.role == "reference"]
    )
    timings = summarize_timings(run)
    tied = set() if run.knee is None else {item.number for item in tied_points(run, run.knee)}
    comparisons = [] if run.front is None else family_of(run).document()
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
            _trial(run, trial, points.get(trial.number), tied, list(metrics))
            for trial in sorted(run.trials, key=lambda trial: trial.number)
        ],
        "points": {number: _take(run, point) for number, point in points.items()},
        "comparisons": {
            "columns": list(comparisons[0]) if comparisons else [],
            "rows": [list(item.values()) for item in comparisons],
        },
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


def payload_json(run: Run, *, refresh_s: float | None = None) -> str:
    """Return the payload as JSON that is safe inside a ``<script>`` element.

    Args:
        run: The run.
        refresh_s: Seconds after which the page loads itself again; None: never.
    """
    live = {} if refresh_s is None else {"refresh_s": refresh_s}
    return script_safe(
        json.dumps(
            _short({**payload(run), **live}),
            ensure_ascii=True,
            allow_nan=False,
            separators=(",", ":"),
        )
    )


def script_safe(text: str) -> str:
    """Return JSON that is safe inside a ``<script>`` element."""
    # NOTE: "</script>" or "<!--" in a label would end the element, whatever its type.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _trial(
    run: Run, trial: TrialRecord, point: Point | None, tied: set[int], metrics: list[str]
) -> dict[str, Any]:
    """Return a trial; what is False, empty or None is left out, so that thousands fit."""
    number = trial.number
    report = None if point is None else point.report
    found = {
        "number": number,
        "name": trial_name(trial),
        "notes": trial_notes(trial),
        "role": trial.role,
        "state": trial.state,
        "outcome": outcome(trial),
        "reason": trial.reason,
        "front": any(item.number == number for item in run.points),
        "reference": point is not None and trial.role == "reference",
        "knee": run.knee is not None and run.knee.number == number,
        "tied": number in tied,
        "belief": None if point is None or point.belief is None else point.belief.resolved(),
        "params": trial.params,
        "coefficients": coefficients(trial.recipe, trial.params),
        "candidate": trial.candidate,
        "search": _estimates(trial.result, trial, metrics),
        "report": _estimates(report, trial, metrics),
        "over": _over(trial),
        "took": _took(trial),
        "sound": [
            name
            for name, item in (("search", trial.result), ("report", report))
            if item and sound_row(run.spec, item) is not None
        ],
    }
    return {name: value for name, value in found.items() if value or type(value) in (int, float)}


def _take(run: Run, point: Point) -> dict[str, str]:
    """Return what a user needs to take a point: recipe, mergekit's file and the command."""
    recipe = point.trial.recipe
    taken = {"yaml": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)}
    if run.front is not None:
        taken["export"] = export_command(run, point.number)
    try:
        spec = MergeRecipe.model_validate(recipe)
        adapters = [
            item.name
            for item in spec.experts
            if (Path(str(item.path)) / "adapter_config.json").is_file()
        ]
        document = mergekit_of_recipe(spec, adapters=adapters)
        taken["mergekit"] = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    except ConfigError as error:
        taken["no_mergekit"] = str(error)
    except ValidationError:
        taken["no_mergekit"] = "the recipe is of another version of safemerge"
    return taken


def _over(trial: TrialRecord) -> list[Any] | None:
    """Return the limit that is broken most, or kept by the least, and by how much."""
    if not trial.violations or outcome(trial) == "broken":
        return None
    metric = max(trial.violations, key=lambda name: trial.violations[name])
    return [metric, trial.violations[metric]]


def _took(trial: TrialRecord) -> float | None:
    span = span_of(trial)
    return None if span is None else (span[1] - span[0]).total_seconds()


def _short(value: Any) -> Any:
    """Return a document whose numbers have six significant digits: the page's, not the run's."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value


def _estimates(
    result: CandidateResult | None, trial: TrialRecord, metrics: list[str]
) -> list[list[float | int | None] | None] | None:
    # NOTE: a broken candidate's figures are not shown: degenerate text can look safe.
    if result is None or outcome(trial) == "broken":
        return None
    return [
        None
        if (item := result.metrics.get(name)) is None
        else [item.value, item.low, item.high, item.n, item.unscored]
        for name in metrics
    ]
