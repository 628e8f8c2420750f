"""An Optuna sampler on `Surrogate`: the expected gain of hypervolume, with the noise known."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from safemerge.pareto import hypervolume, non_dominated_mask
from safemerge.search.encoding import Encoding
from safemerge.search.known import REFERENCE
from safemerge.search.noise import VARIANCES
from safemerge.search.surrogate import Proposed, Surrogate
from safemerge.search.verdict import BROKEN

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Array = npt.NDArray[np.float64]

MAX_POINTS = 400
"""Evaluations that a model is fitted to; of more, the best layers of fronts and an even sample."""

EXPECTED_GAIN = "expected_gain"
"""User attribute of Optuna's trials: by how much each was expected to raise the hypervolume of the
believed front, as a share of it; none where that front is worth nothing."""

LEAST_VARIANCE = 1e-6
"""Variance of a value that has less, or none that is known."""


class Evaluations(NamedTuple):
    """What was found so far, higher is better, constraints (0 or less where they hold) last."""

    points: Array
    values: Array
    variances: Array


class BayesianSampler(BaseSampler):
    """Multi-objective Bayesian optimisation over a study's spaces.

    The first ``startup`` recipes are a scrambled Sobol sequence; every other one of them moves all
    depths of a coefficient together. From then on each is where qLogNEHVI is largest; trials in
    flight count as pending. With the same trials and seed it proposes the same.

    Args:
        encoding: The search spaces.
        objectives: Reference value of each objective by its metric, in the study's order.
        startup: Recipes before the model decides.
        seed: Of everything random.
    """

    def __init__(
        self, encoding: Encoding, objectives: Mapping[str, float], *, startup: int, seed: int
    ) -> None:
        self._encoding = encoding
        self._metrics = list(objectives)
        self._references = np.array(list(objectives.values()), dtype=np.float64)
        self._startup = startup
        self._seed = seed
        self._random = RandomSampler(seed=seed)
        self._lock = threading.Lock()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the parameters of all spaces; `sample_relative` gives values to one space's."""
        del study, trial
        return self._encoding.parameters()

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Propose the next recipe's parameters."""
        del search_space
        with self._lock:
            trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            found = self._evaluations(study, trials)
            sampled = sum(REFERENCE not in item.user_attrs for item in trials)
            if len(found.points) < 2 or sampled < self._startup:
                return self._start(self._order(study, trial.number))
            running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            pending = self._points([item for item in running if item.number != trial.number])
            return self._propose(study, found, pending, trial)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a parameter of no declared space at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _order(self, study: optuna.Study, number: int) -> int:
        """Return a trial's place among those that were sampled."""
        trials = study.get_trials(deepcopy=False)[:number]
        return sum(REFERENCE not in item.user_attrs for item in trials)

    def _start(self, number: int) -> dict[str, Any]:
        patterns = self._encoding.patterns()
        pattern = patterns[number % len(patterns)]
        turn = number // len(patterns)
        width = len(pattern.free)
        if not width:
            return self._encoding.params(
                pattern, self._encoding.spread(pattern, np.empty((1, 0)))[0]
            )
        from scipy.stats import qmc  # comes with BoTorch; slow to import

        free = qmc.Sobol(width, rng=self._seed).random(1 << (turn + 1).bit_length())[turn]
        point = self._encoding.spread(pattern, free[None])[0]
        if turn % 2 == 0:
            for group in self._encoding.groups:
                if set(group) <= set(pattern.free):
                    point[list(group)] = point[group[0]]
        return self._encoding.params(pattern, point)

    def _propose(
        self, study: optuna.Study, found: Evaluations, pending: Array, trial: FrozenTrial
    ) -> dict[str, Any]:
        signs = _signs(study)
        words = np.random.SeedSequence((self._seed, trial.number)).generate_state(1)
        seed = int(words[0]) >> 1
        surrogate = Surrogate(
            found.points, found.values, found.variances, groups=self._encoding.groups
        )
        count = len(signs)
        belief = surrogate.believe(found.points)
        objectives = belief.mean[:, :count]
        holds = np.all(belief.mean[:, count:] <= 0, axis=1)
        near = found.points[holds] if holds.any() else found.points
        rows = objectives[holds] if holds.any() else objectives
        on_front = non_dominated_mask(rows, ["maximize"] * count)
        near, rows = near[on_front], rows[on_front]
        references = self._references * signs
        proposals = surrogate.propose(
            self._encoding,
            reference=references.tolist(),
            near=near,
            pending=pending,
            limits=found.values.shape[1] - count,
            seed=seed,
        )
        params, gain = self._first_new(proposals, found.points, pending)
        reached = hypervolume(rows, references, ["maximize"] * count) if holds.any() else 0.0
        if reached > 0:
            study._storage.set_trial_user_attr(trial._trial_id, EXPECTED_GAIN, gain / reached)
        return params

    def _first_new(
        self, proposals: Sequence[Proposed], points: Array, pending: Array
    ) -> tuple[dict[str, Any], float]:
        """Return the best proposal that was not evaluated yet, once it is put on its grid."""
        known = np.concatenate([points, pending]) if len(pending) else points
        made = [(self._encoding.params(item.pattern, item.point), item.gain) for item in proposals]
        for params, gain in made:
            point = self._encoding.point(params)
            if point is not None and not np.any(np.all(np.abs(known - point) < 1e-9, axis=1)):
                return params, gain
        return made[0]

    def _evaluations(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> Evaluations:
        signs = _signs(study)
        names = sorted({name for trial in trials for name in trial.constraints})
        points: list[Array] = []
        found: list[list[float]] = []
        noise: list[list[float]] = []
        for trial in trials:
            point = self._encoding.point(trial.params)
            values = [*np.asarray(trial.values) * signs]
            limits = [trial.constraints.get(name, 0.0) for name in names]
            if point is None or not np.all(np.isfinite([*values, *limits])):
                continue
            known = trial.user_attrs.get(VARIANCES, {})
            points.append(point)
            found.append([*values, *limits])
            # A broken candidate has no other violation: what stands for one says as little.
            least = known.get(BROKEN, 0.0)
            noise.append([known.get(metric, least) for metric in [*self._metrics, *names]])
        shape = len(points), len(signs) + len(names)
        values_at = np.array(found, dtype=np.float64).reshape(shape)
        evaluations = Evaluations(
            np.array(points).reshape(len(points), self._encoding.width),
            values_at,
            np.maximum(np.array(noise, dtype=np.float64).reshape(shape), LEAST_VARIANCE),
        )
        kept = best_and_even(evaluations, len(signs))
        return Evaluations(
            evaluations.points[kept], evaluations.values[kept], evaluations.variances[kept]
        )

    def _points(self, trials: Sequence[FrozenTrial]) -> Array:
        found = [self._encoding.point(trial.params) for trial in trials]
        known = [point for point in found if point is not None]
        return np.array(known).reshape(len(known), self._encoding.width)


def _signs(study: optuna.Study) -> Array:
    return np.array([1.0 if item.name == "MAXIMIZE" else -1.0 for item in study.directions])


def best_and_even(found: Evaluations, count: int) -> npt.NDArray[np.intp]:
    """Choose `MAX_POINTS` evaluations: half by layers of fronts, half evenly over time.

    Args:
        found: The evaluations; of fewer, all are chosen.
        count: Number of objectives; the other values are constraints.

    Returns:
        Their indices, in order.
    """
    if len(found.points) <= MAX_POINTS:
        return np.arange(len(found.points))
    rest = np.flatnonzero(np.all(found.values[:, count:] <= 0, axis=1))
    kept: list[int] = []
    while len(rest) and len(kept) < MAX_POINTS // 2:
        mask = non_dominated_mask(found.values[rest, :count], ["maximize"] * count)
        kept += rest[mask].tolist()
        rest = rest[~mask]
    kept = kept[: MAX_POINTS // 2]
    others = np.setdiff1d(np.arange(len(found.points)), kept)
    even = others[np.linspace(0, len(others) - 1, MAX_POINTS - len(kept)).astype(int)]
    return np.sort(np.concatenate([np.array(kept, dtype=np.intp), even]))
