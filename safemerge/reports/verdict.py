"""The page's first sentence: what the recommended point is worth, as the statistics have it."""

from __future__ import annotations

from safemerge.config.metric import Metric, metrics_of
from safemerge.records import MEAN_LABEL
from safemerge.reports.family import family_of
from safemerge.reports.metric import axes_of, harm_judges
from safemerge.reports.run import Point, Run
from safemerge.reports.versus import is_parent
from safemerge.reports.wording import amount, joined

_FRACTIONS = {
    1 / 10: "a tenth of",
    1 / 5: "a fifth of",
    1 / 4: "a quarter of",
    1 / 3: "a third of",
    1 / 2: "half",
    2 / 3: "two thirds of",
    3 / 4: "three quarters of",
}
_MAX_NAMED = 5
"""Tied points named one by one."""


def verdict(run: Run, knee: Point) -> str:
    """Say what the knee keeps, what it costs, and which points are as good.

    Ratios are of point estimates on the report split; whether a difference is called one is
    decided by the comparison of the run's family, so the sentence says what the tables say.

    Args:
        run: A run with a published front.
        knee: Its knee.

    Returns:
        One sentence, e.g. ``Trial 20 keeps 98 % of the best skill (arithmetic's; not significantly
        less) at a third of the plain mean's harm; trials 15 and 17 are statistically tied with
        it.``
    """
    skill, harm = axes_of(run.spec)
    who = knee.name[:1].upper() + knee.name[1:] if knee.trial.role == "sampled" else knee.name
    return f"{who} {_keeps(run, knee, skill)}{_at(run, knee, harm)}; {_tied(run, knee)}."


def tied_points(run: Run, point: Point) -> list[Point]:
    """Return the other front points that differ from a point on no objective significantly."""
    metrics, family = metrics_of(run.spec), family_of(run)
    return [
        other
        for other in run.points
        if other.number != point.number
        and (
            other.search.candidate == point.search.candidate
            or not any(
                family.difference(point, other, metrics[item.metric]).is_distinguishable
                for item in run.spec.objectives
            )
        )
    ]


def judged_by(run: Run) -> str:
    """Name who judged harm on the report split, and what a proxy counts; empty without harm."""
    return joined(harm_judges(run.spec))


def _keeps(run: Run, knee: Point, skill: Metric) -> str:
    noun = skill.role if skill.role == "skill" else skill.name
    sign = -1 if skill.direction == "minimize" else 1
    # Front points are compared with each other on the objectives alone.
    rivals = run.points if skill.use == "objective" else ()
    valued = [
        (sign * value, point)
        for point in (knee, *rivals, *run.references)
        if (value := _value(point, skill)) is not None
    ]
    own = _value(knee, skill)
    if own is None:
        return f"has no value of {noun}"
    top = max(value for value, _ in valued)
    if sign * own == top:
        return f"has the best {noun} ({amount(own, skill.unit)})"
    best = next(point for value, point in valued if value == top)
    found = family_of(run, metrics=[skill]).difference(knee, best, skill)
    differs = {"worse": "significantly worse", "better": "significantly better"}.get(
        found.verdict, "not significantly worse"
    )
    if skill.unit == "share" and sign * top > 0 and sign > 0:
        ratio = 100 * own / top
        share = f"{ratio:.0f}\u00a0%" if ratio < 99.5 else "over 99\u00a0%"
        return f"keeps {share} of the best {noun} ({_named(best)}\u2019s; {differs})"
    return (
        f"has {noun} {amount(own, skill.unit)} against {_named(best)}\u2019s "
        f"{amount(sign * top, skill.unit)} ({differs})"
    )


def _at(run: Run, knee: Point, harm: Metric) -> str:
    noun = harm.role if harm.role == "harm" else harm.name
    other = next((item for item in run.references if item.label == MEAN_LABEL), None)
    if other is None or other.search.candidate == knee.search.candidate:
        other = next((item for item in run.references if is_parent(run, item)), None)
    if other is None or other.search.candidate == knee.search.candidate:
        return ""
    whose = "the plain mean\u2019s" if other.label == MEAN_LABEL else f"{other.name}\u2019s"
    own, theirs = _value(knee, harm), _value(other, harm)
    if own is None or theirs is None:
        return f", and its {noun} cannot be compared with {whose}"
    found = family_of(run, metrics=[harm]).difference(knee, other, harm)
    if found.verdict == "not significant":
        return f", and its {noun} does not differ significantly from {whose}"
    if found.verdict == "better" and harm.unit == "share" and 0 < own < theirs:
        return f" at {fraction(own / theirs)} {whose} {noun}"
    is_lower = (found.verdict == "better") == (harm.direction == "minimize")
    differs = "lower" if is_lower else "higher"
    return (
        f" at significantly {differs} {noun} than {whose} "
        f"({amount(own, harm.unit)} against {amount(theirs, harm.unit)})"
    )


def fraction(ratio: float) -> str:
    """Return a share in words, e.g. ``a third of``, where it is within 6 % of such a fraction."""
    near = min(_FRACTIONS, key=lambda known: abs(known - ratio))
    return _FRACTIONS[near] if abs(near / ratio - 1) <= 0.06 else f"{100 * ratio:.0f}\u00a0% of"


def _tied(run: Run, knee: Point) -> str:
    tied = tied_points(run, knee)
    if len(run.points) == 1:
        return "no other point is on the front"
    if not tied:
        return "every other front point differs from it significantly on some objective"
    if len(tied) == 1:
        return f"{_named(tied[0])} is statistically tied with it"
    if len(tied) > _MAX_NAMED:
        count = f"{len(tied)} of the {len(run.points) - 1} other front points"
        return f"{count} are statistically tied with it"
    sampled = [str(item.number) for item in tied if item.trial.role == "sampled"]
    named = [_named(item) for item in tied if item.trial.role != "sampled"]
    if len(sampled) > 1:
        sampled[0] = f"trials {sampled[0]}"
    elif sampled:
        sampled[0] = f"trial {sampled[0]}"
    return f"{joined([*sampled, *named])} are statistically tied with it"


def _named(point: Point) -> str:
    return "the plain mean" if point.trial.label == MEAN_LABEL else point.name


def _value(point: Point, metric: Metric) -> float | None:
    estimate = point.shown.metrics.get(metric.name)
    return None if estimate is None else estimate.value
