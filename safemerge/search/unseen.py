"""Which recipes a search has drawn already, and one that it has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safemerge.config.grid import GridPoint, grid_point, grid_points, grid_size
from safemerge.config.study import StudySpec
from safemerge.records import TrialRecord
from safemerge.search.records import Proposal
from safemerge.search.space import Suggestion, recipe_at, suggest

_MAX_LISTED = 10_000
"""Points of a grid up to which they are gone through one by one."""

_NUM_DRAWS = 200
"""Random draws from a continuum, or from a larger grid, before it counts as exhausted."""


@dataclass(frozen=True)
class Drawn:
    """What was sampled so far, in flight or finished, under whatever state it ended."""

    points: frozenset[GridPoint]
    candidates: frozenset[str]
    """Digests: two spaces, or two values, may make one recipe."""

    @classmethod
    def of(cls, sampled: Iterable[TrialRecord | Proposal]) -> Drawn:
        """Return what these trials have drawn; references and exact counterparts count as none."""
        own = [item for item in sampled if item.role == "sampled" and item.exact_of is None]
        return cls(
            frozenset(grid_point(item.space or "", item.params) for item in own),
            frozenset(item.candidate for item in own),
        )

    def __contains__(self, suggestion: Suggestion) -> bool:
        """Whether a draw repeats an earlier one."""
        point = grid_point(suggestion.space, suggestion.params)
        return point in self.points or suggestion.recipe.digest in self.candidates


def is_covered(spec: StudySpec, drawn: Drawn) -> bool:
    """Say whether every recipe that the spaces can express was drawn; never for a continuum."""
    size = grid_size(spec)
    if size is None or size > _MAX_LISTED:
        return False
    return _first_unseen(spec, drawn) is None


def unseen(spec: StudySpec, drawn: Drawn) -> Suggestion | None:
    """Draw a recipe that was not drawn before, uniformly among those that are left.

    Args:
        spec: The study; the draw hangs on its seed and on how many were drawn.
        drawn: What was.

    Returns:
        The draw; None if nothing is left.
    """
    generator = np.random.default_rng((spec.seed, len(drawn.points)))
    size = grid_size(spec)
    if size is not None and size <= _MAX_LISTED:
        return _first_unseen(spec, drawn, order=generator.permutation(size))
    draw = _RandomDraw(generator)
    draws = (suggest(draw, spec) for _ in range(_NUM_DRAWS))
    return next((found for found in draws if found not in drawn), None)


def _first_unseen(
    spec: StudySpec, drawn: Drawn, *, order: np.ndarray[Any, Any] | None = None
) -> Suggestion | None:
    points = list(grid_points(spec))
    for place in range(len(points)) if order is None else order:
        space, params = points[place]
        if grid_point(space.name, params) in drawn.points:
            continue
        found = Suggestion(space.name, params, recipe_at(spec, space, params))
        if found not in drawn:
            return found
    return None


class _RandomDraw:
    """A uniform draw, in the form that a space asks for it."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        del name
        if step is not None:
            return low + step * int(self._generator.integers(round((high - low) / step) + 1))
        if log:
            return float(np.exp(self._generator.uniform(np.log(low), np.log(high))))
        return float(self._generator.uniform(low, high))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        del name
        return choices[int(self._generator.integers(len(choices)))]
