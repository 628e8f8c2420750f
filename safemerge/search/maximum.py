"""A search for the largest value of a number under a bound: one objective, no recipes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

_BOUND = "bound"


class Span(NamedTuple):
    """A number in [low, high]; whole if both ends are integers."""

    low: float
    high: float
    log: bool = False


class Branch(NamedTuple):
    """A choice, and what else is drawn where it fell on a value."""

    choices: tuple[str, ...]
    spans: Mapping[str, Mapping[str, Span]]
    """Further numbers by value of the choice."""


class BoundedMaximum:
    """Proposes points; takes the value of each, and how far it violates a bound.

    TPE (multivariate, constrained), with a random start. The same seed and the same results, in
    the order of the asks, give the same points: a search is resumed by repeating them.

    Args:
        spans: Numbers of every point, by name.
        branch: A choice with numbers of its own; drawn first, under its name.
        seed: Of the sampler.
        startup: Points drawn at random before the sampler learns.
    """

    def __init__(
        self,
        spans: Mapping[str, Span],
        branch: tuple[str, Branch],
        *,
        seed: int,
        startup: int,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._spans, (self._chosen, self._branch) = dict(spans), branch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=startup,
                multivariate=True,
                group=True,
                constant_liar=True,
            )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._asked: dict[int, optuna.Trial] = {}

    def ask(self) -> tuple[int, dict[str, float | str]]:
        """Return the next point and its number."""
        trial = self._study.ask()
        value = trial.suggest_categorical(self._chosen, list(self._branch.choices))
        point: dict[str, float | str] = {self._chosen: str(value)}
        further = self._branch.spans.get(str(value), {})
        for name, span in {**self._spans, **further}.items():
            point[name] = _drawn(trial, name, span)
        self._asked[trial.number] = trial
        return trial.number, point

    def tell(self, number: int, value: float | None, *, beyond: float = 0.0) -> None:
        """Tell what became of a point.

        Args:
            number: See `ask`.
            value: What is to be large; None, or not finite, for a point that failed.
            beyond: How far it breaks the bound; at most 0 keeps it.
        """
        trial = self._asked.pop(number)
        if value is None or not math.isfinite(value):
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_constraint(_BOUND, beyond)
        self._study.tell(trial, value)


def _drawn(trial: optuna.Trial, name: str, span: Span) -> float:
    if span.low == span.high:
        return span.low
    if isinstance(span.low, int) and isinstance(span.high, int):
        return trial.suggest_int(name, span.low, span.high, log=span.log)
    # Three digits: what is drawn can be written down and drawn again.
    rounded = float(f"{trial.suggest_float(name, span.low, span.high, log=span.log):.3g}")
    return min(max(rounded, span.low), span.high)
