"""Optuna's TPE over declared spaces and a bounded history, so that a draw's cost does not grow.

Optuna finds the spaces out from every finished trial, and fits its densities to each of them, anew
for every draw. Declared spaces are known, and the good side is 25 trials at most, however many
there are; of the others a sample says as much.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from safemerge.pareto import non_dominated_mask

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

MAX_TRIALS = 400
"""Finished trials that densities are fitted to; of more, the best and an even sample."""

_SLACK = 1.5
"""How far the history may grow beyond that until it is thinned out."""


class BoundedTPESampler(TPESampler):
    """TPE: multivariate, grouped by space, with a constant liar for trials in flight.

    Up to `MAX_TRIALS` finished trials (or twice `startup`, if that is more) it draws what Optuna's
    own would with these groups.

    Args:
        spaces: Distribution by parameter name, by space.
        chooser: Distribution of the parameter that holds the space, by its name; empty with a
            single space.
        startup: Finished trials from which on it learns.
        seed: Of everything random.
    """

    def __init__(
        self,
        spaces: Mapping[str, Mapping[str, BaseDistribution]],
        *,
        chooser: Mapping[str, BaseDistribution],
        startup: int,
        seed: int,
    ) -> None:
        with warnings.catch_warnings():
            # `group`, experimental since Optuna 2.8.
            warnings.filterwarnings("ignore", "Argument ``group``", ExperimentalWarning)
            super().__init__(
                seed=seed,
                n_startup_trials=startup,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        groups = [dict(chooser), *(dict(space) for space in spaces.values())]
        self._group_decomposed_search_space = cast("Any", _Declared(groups))
        self._history = History(limit=max(MAX_TRIALS, 2 * startup))

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Draw the parameters of every space; a trial takes those of the one it is in."""
        seen = _Seen(study, self._history.of(study))
        return super().sample_relative(cast("Any", seen), trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter: at random, before anything is learnt."""
        seen = _Seen(study, self._history.of(study))
        return super().sample_independent(cast("Any", seen), trial, param_name, param_distribution)


class History:
    """The trials of a study that a sampler learns from; each is looked at until it is finished.

    Args:
        limit: Finished trials that are kept when there are too many.
    """

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self._finished: list[FrozenTrial] = []
        self._open: list[int] = []
        self._num_seen = 0

    def of(self, study: optuna.Study) -> list[FrozenTrial]:
        """Return finished trials with values or pruned, then those that run, each by number."""
        trials = study._get_trials(deepcopy=False, use_cache=False)
        waiting, running = [], []
        for number in [*self._open, *range(self._num_seen, len(trials))]:
            trial = trials[number]
            if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
                self._finished.append(trial)
            elif not trial.state.is_finished():
                waiting.append(number)
                if trial.state == TrialState.RUNNING:
                    running.append(trial)
        self._open, self._num_seen = waiting, len(trials)
        if len(self._finished) > _SLACK * self._limit:
            signs = [-1.0 if way.name == "MAXIMIZE" else 1.0 for way in study.directions]
            self._finished = best_and_even_trials(self._finished, signs, limit=self._limit)
        self._finished.sort(key=lambda trial: trial.number)
        return [*self._finished, *running]


def best_and_even_trials(
    trials: Sequence[FrozenTrial], signs: Sequence[float], *, limit: int
) -> list[FrozenTrial]:
    """Choose some trials: half of them the best layers of fronts, the rest evenly over time.

    Args:
        trials: Finished trials; pruned and infeasible ones are in no layer.
        signs: 1 for objectives that are minimised, -1 for others.
        limit: How many are chosen.

    Returns:
        The trials, in order.
    """
    rest = np.array(
        [
            index
            for index, trial in enumerate(trials)
            if trial.state == TrialState.COMPLETE
            and all(violation <= 0 for violation in trial.constraints.values())
        ],
        dtype=np.intp,
    )
    best: list[int] = []
    while len(rest) and len(best) < limit // 2:
        losses = np.array([trials[index].values for index in rest]) * signs
        mask = non_dominated_mask(losses, ["minimize"] * len(signs))
        best += rest[mask].tolist()
        rest = rest[~mask]
    best = best[: limit // 2]
    others = np.setdiff1d(np.arange(len(trials)), best)
    count = min(limit - len(best), len(others))
    even = others[np.linspace(0, len(others) - 1, count).astype(np.intp)]
    return [trials[index] for index in sorted([*best, *even.tolist()])]


class _Declared:
    """Groups of parameters in the form that TPE asks for; found out from no trial."""

    def __init__(self, groups: Sequence[dict[str, BaseDistribution]]) -> None:
        self.search_spaces = [group for group in groups if group]

    def calculate(self, study: optuna.Study, use_cache: bool = False) -> _Declared:
        del study, use_cache
        return self


class _Seen:
    """A study that has some of its trials only."""

    def __init__(self, study: optuna.Study, trials: Sequence[FrozenTrial]) -> None:
        self._study, self._trials = study, trials

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        del deepcopy, use_cache
        return [trial for trial in self._trials if states is None or trial.state in states]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)
