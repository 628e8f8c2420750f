"""Which parameters move an objective, by the model of everything that was evaluated.

References:
    Saltelli et al., Variance based sensitivity analysis of model output, Computer Physics
    Communications 181 (2010), table 2 (f): Jansen's estimator of the total effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from safemerge.search.encoding import Encoding

Array = npt.NDArray[np.float64]

_ROWS = 512
"""Recipes that each index is an average over: its standard error is some 0.03."""
_BATCH = 256
_LEAST_VARIANCE = 1e-12


class _Model(Protocol):
    def believe(self, points: Array) -> Any:
        """Return something with ``mean``, shape (points, metrics)."""
        ...


def importances(
    model: _Model, encoding: Encoding, metrics: Sequence[str], *, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the total effect of each parameter on the posterior mean.

    The total effect (total Sobol index) is the share of a metric's variance over a space, drawn
    evenly, that would be left if all other parameters were fixed: alone and through what it does
    together with others, so that the effects of a space may add up to more than 1. What the
    evaluations do not show counts as no effect.

    Args:
        model: See `Surrogate`.
        encoding: The search spaces.
        metrics: Names of the model's first metrics.
        seed: Of the recipes that are drawn.

    Returns:
        Total effect in [0, 1] by path, by space, by metric; 0 where the metric does not vary.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, dict[str, float]]] = {metric: {} for metric in metrics}
    for space, distributions in encoding.spaces.items():
        chosen = {} if encoding.chooser is None else {encoding.chooser: space}
        first, second = (
            [{**chosen, **_drawn(distributions, rng)} for _ in range(_ROWS)] for _ in range(2)
        )
        at_first = _means(model, encoding, first)
        spread = np.concatenate([at_first, _means(model, encoding, second)]).var(axis=0)
        effects = {}
        for name in distributions:
            changed = [
                {**one, name: other[name]} for one, other in zip(first, second, strict=True)
            ]
            moved = ((at_first - _means(model, encoding, changed)) ** 2).mean(axis=0) / 2
            effects[encoding.path(name)] = np.where(
                spread > _LEAST_VARIANCE, moved / np.maximum(spread, _LEAST_VARIANCE), 0.0
            )
        for column, metric in enumerate(metrics):
            found[metric][space] = {
                path: float(np.clip(effect[column], 0.0, 1.0)) for path, effect in effects.items()
            }
    return found


def _means(model: _Model, encoding: Encoding, rows: Sequence[Mapping[str, Any]]) -> Array:
    points = np.array([encoding.point(row) for row in rows])
    parts = [model.believe(points[at : at + _BATCH]).mean for at in range(0, len(points), _BATCH)]
    return np.concatenate(parts)


def _drawn(
    distributions: Mapping[str, BaseDistribution], rng: np.random.Generator
) -> dict[str, Any]:
    return {name: _value(item, rng) for name, item in distributions.items()}


def _value(item: BaseDistribution, rng: np.random.Generator) -> Any:
    if isinstance(item, CategoricalDistribution):
        return item.choices[rng.integers(len(item.choices))]
    assert isinstance(item, FloatDistribution | IntDistribution), "what an encoding holds"
    if item.step is not None and not item.log:
        count = round((item.high - item.low) / item.step)
        return item.low + item.step * int(rng.integers(count + 1))
    if item.log:
        return float(np.exp(rng.uniform(np.log(item.low), np.log(item.high))))
    return float(rng.uniform(item.low, item.high))
