"""The front by what is believed after all evaluations, not by what was lucky.

One Gaussian process a metric, as in the Bayesian sampler, is fitted to every scored trial with the
known variance of its values. Candidates answer the same prompts: how hard these happen to be moves
all alike and says nothing of which is better, so it widens the intervals and not the comparisons.
Candidates are then compared in joint draws from the posterior.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from safemerge.config.metric import measured_metrics
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.front import BelievedFront, eligible_trials
from safemerge.pareto import hypervolume, non_dominated_mask
from safemerge.records import Believed, FrontBelief, PointBelief, TrialRecord
from safemerge.search.bayesian_sampler import LEAST_VARIANCE, Evaluations, best_and_even
from safemerge.search.encoding import Encoding
from safemerge.search.importance import importances
from safemerge.search.known import expressions
from safemerge.search.noise import shared_noise, variances
from safemerge.search.space import encoding, optuna_params, space_by_name
from safemerge.search.surrogate import Surrogate

Array = npt.NDArray[np.float64]

LEAST_EVALUATIONS = 12
"""Scored trials from which on a posterior is fitted; fewer say little of four and more numbers."""
CHANCE = 0.05
"""Probability of being on the front from which on a point is published."""
MOST_PUBLISHED = 24
"""Points that are published beside non-dominated means, with these: the likeliest. Every one is
evaluated on the report split, and flat spaces have many with a fair chance."""

_DRAWS = 1000
_MAX_CANDIDATES = 300
"""Candidates that are compared in draws; of more, the best layers of fronts of the means."""
_Z = 1.959964


class _Candidates(NamedTuple):
    """What is believed of the trials that may be on the front; higher is better."""

    trials: list[TrialRecord]
    mean: Array
    """Shape (trials, metrics), objectives first, then violations."""
    deviation: Array
    draws: Array
    """Shape (draws, trials, metrics)."""
    importance: dict[str, dict[str, dict[str, float]]]
    """Of parameters, by objective; see `importances`."""


def believed_front(spec: StudySpec, records: Sequence[TrialRecord]) -> BelievedFront | str:
    """Choose the front by a posterior over all evaluations.

    Published are the trials that are feasible as observed and have a fair chance of the front:
    of `_DRAWS` joint draws from the posterior, they keep every limit and are non-dominated in at
    least `CHANCE` (the likeliest of more than `MOST_PUBLISHED`); and all whose means are
    non-dominated. A reference point that no space expresses is believed as it was measured.

    Args:
        spec: The study.
        records: Its finished trials.

    Returns:
        The front; or why it is the observed one, as the end of a sentence.
    """
    if spec.front == "observed":
        return "as the study says"
    if importlib.util.find_spec("botorch") is None:
        return "botorch, which fits the posterior, is not installed"
    cube = encoding(spec)
    found = {
        item.number: point for item in records if (point := _point(spec, cube, item)) is not None
    }
    scored = [item for item in records if item.number in found and _row(spec, item) is not None]
    if len(scored) < LEAST_EVALUATIONS:
        return f"{len(scored)} scored recipes of the spaces; a posterior needs {LEAST_EVALUATIONS}"
    eligible = [item for item in eligible_trials(records) if _row(spec, item) is not None]
    if not eligible:
        return "no recipe keeps every limit"
    from botorch.exceptions import ModelFittingError

    try:
        candidates = _believe(spec, cube, scored, eligible, found)
    except ModelFittingError:
        return "the posterior could not be fitted"
    return _chosen(spec, candidates, len(scored))


def _believe(
    spec: StudySpec,
    cube: Encoding,
    scored: Sequence[TrialRecord],
    eligible: list[TrialRecord],
    points: Mapping[int, Array],
) -> _Candidates:
    values = np.array([_row(spec, item) for item in scored])
    noise = _noise(spec, {item.number: item for item in (*scored, *eligible)}.values())
    own = np.array([noise.own[item.number] for item in scored])
    found = Evaluations(np.array([points[item.number] for item in scored]), values, own)
    kept = best_and_even(found, len(spec.objectives))
    surrogate = Surrogate(
        found.points[kept], found.values[kept], found.variances[kept], groups=cube.groups
    )
    mean = np.array([_row(spec, item) for item in eligible])
    deviation = np.sqrt([noise.own[item.number] for item in eligible])
    modelled = np.array([item.number in points for item in eligible])
    if modelled.any():
        known = [points[item.number] for item in eligible if item.number in points]
        belief = surrogate.believe(np.array(known))
        mean[modelled], deviation[modelled] = belief.mean, belief.deviation
    best = _best_layers(mean[:, : len(spec.objectives)])
    trials = [eligible[index] for index in best]
    mean, deviation, modelled = mean[best], deviation[best], modelled[best]
    rng = np.random.default_rng(spec.seed)
    draws = mean + deviation * rng.standard_normal((_DRAWS, *mean.shape))
    if modelled.any():
        known = [points[item.number] for item in trials if item.number in points]
        draws[:, modelled] = surrogate.draw(np.array(known), count=_DRAWS, seed=spec.seed)
    draws += np.sqrt(noise.shared) * rng.standard_normal((_DRAWS, 1, mean.shape[1]))
    goals = [item.metric for item in spec.objectives]
    return _Candidates(
        trials,
        mean,
        np.sqrt(deviation**2 + noise.shared),
        draws,
        importances(surrogate, cube, goals, seed=spec.seed),
    )


def _chosen(spec: StudySpec, found: _Candidates, evaluations: int) -> BelievedFront | str:
    count = len(spec.objectives)
    chance = np.mean([_on_front(draw, count) for draw in found.draws], axis=0)
    members = _on_front(found.mean, count)
    published = _published(members, chance)
    if not members.any():
        return "no recipe is believed to keep every limit"
    signs = _signs(spec)
    references = signs * [item.reference for item in spec.objectives]
    volumes = []
    for draw in found.draws[:, published]:
        holds = np.all(draw[:, count:] <= 0, axis=1)
        volumes.append(hypervolume(draw[holds, :count], references, ["maximize"] * count))
    low, high = np.quantile(volumes, [0.025, 0.975])
    return BelievedFront(
        FrontBelief(
            evaluations=evaluations,
            members=[found.trials[index].number for index in np.flatnonzero(members)],
            chance=CHANCE,
            hypervolume=Believed(mean=float(np.mean(volumes)), low=float(low), high=float(high)),
            importance=found.importance,
        ),
        {
            found.trials[index].number: PointBelief(
                values=_believed(spec, found.mean[index], found.deviation[index]),
                chance=float(chance[index]),
            )
            for index in published
        },
    )


def _published(members: npt.NDArray[np.bool_], chance: Array) -> npt.NDArray[np.intp]:
    """Return the rows of members and of others with a fair chance, in order."""
    others = np.flatnonzero(~members & (chance >= CHANCE))
    room = max(0, MOST_PUBLISHED - int(members.sum()))
    likeliest = others[np.argsort(-chance[others], kind="stable")][:room]
    return np.sort(np.concatenate([np.flatnonzero(members), likeliest]))


def _on_front(values: Array, count: int) -> npt.NDArray[np.bool_]:
    """Which rows keep every limit and are dominated by no other row that does."""
    holds = np.all(values[:, count:] <= 0, axis=1)
    on_front = np.zeros(len(values), dtype=np.bool_)
    goals = values[holds, :count]
    better = goals[:, None] >= goals[None]
    beats = better.all(axis=2) & ~better.transpose(1, 0, 2).all(axis=2)
    on_front[holds] = ~beats.any(axis=0)
    return on_front


def _believed(spec: StudySpec, mean: Array, deviation: Array) -> dict[str, Believed]:
    metrics = measured_metrics(spec.suites, spec.aggregates)
    found = {}
    for index, (goal, sign) in enumerate(zip(spec.objectives, _signs(spec), strict=True)):
        value = float(sign * mean[index])
        ends = [value - _Z * deviation[index], value, value + _Z * deviation[index]]
        span = metrics[goal.metric].range
        low, middle, high = ends if span is None else np.clip(ends, *span)
        found[goal.metric] = Believed(mean=float(middle), low=float(low), high=float(high))
    return found


def _best_layers(goals: Array) -> npt.NDArray[np.intp]:
    """Return the rows of the first layers of fronts, `_MAX_CANDIDATES` at most, in order."""
    rest = np.arange(len(goals))
    kept: list[int] = []
    while len(rest) and len(kept) < _MAX_CANDIDATES:
        mask = non_dominated_mask(goals[rest], ["maximize"] * goals.shape[1])
        kept += rest[mask].tolist()
        rest = rest[~mask]
    return np.sort(np.array(kept[:_MAX_CANDIDATES], dtype=np.intp))


def _point(spec: StudySpec, cube: Encoding, record: TrialRecord) -> Array | None:
    """Where a trial is in the spaces; of a reference, the first point that expresses it."""
    if record.state != "COMPLETE":
        return None
    space, params = record.space, record.params
    if record.role == "reference":
        same = expressions(spec, MergeRecipe.model_validate(record.recipe))
        if not same:
            return None
        space, params = same[0].space, same[0].params
    return cube.point(optuna_params(spec, space_by_name(spec, space or ""), params))


def _row(spec: StudySpec, record: TrialRecord) -> list[float] | None:
    """Objectives, higher is better, then violations; None without a value of each."""
    if record.result is None or record.result.broken is not None:
        return None
    signs = _signs(spec)
    goals = [record.objectives.get(item.metric, np.nan) for item in spec.objectives]
    limits = [record.violations.get(metric, np.nan) for metric in _limits(spec)]
    row = [*(signs * goals).tolist(), *limits]
    return row if np.all(np.isfinite(row)) else None


class _Noise(NamedTuple):
    own: dict[int, Array]
    """Variance of each value of `_row`, by trial number."""
    shared: Array
    """Variance of what moves all trials alike, shape (metrics,)."""


def _noise(spec: StudySpec, records: Iterable[TrialRecord]) -> _Noise:
    """Variances by prompts that all answered, where they did; else by each value's interval."""
    records = list(records)
    metrics = [*(item.metric for item in spec.objectives), *_limits(spec)]
    own = {item.number: np.empty(len(metrics)) for item in records}
    shared = np.zeros(len(metrics))
    for column, metric in enumerate(metrics):
        aggregate = spec.aggregates.get(metric)
        paired = shared_noise(
            records, metric, mean_of=() if aggregate is None else aggregate.mean_of
        )
        for item in records:
            known = variances(item) if paired is None else {metric: paired.own[item.number]}
            own[item.number][column] = max(known.get(metric, 0.0), LEAST_VARIANCE)
        if paired is not None:
            shared[column] = paired.shared
    return _Noise(own, shared)


def _limits(spec: StudySpec) -> list[str]:
    return list(dict.fromkeys(item.metric for item in spec.constraints))


def _signs(spec: StudySpec) -> Array:
    return np.array([1.0 if item.direction == "maximize" else -1.0 for item in spec.objectives])
