"""Which recipes a search has drawn already, and one that it has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safemerge.config.checkpoint import Setting
from safemerge.config.grid import GridPoint, grid_point, grid_points, grid_size
from safemerge.config.study import SearchSpace, StudySpec
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

    points: set[GridPoint] = field(default_factory=set)
    candidates: set[str] = field(default_factory=set)
    """Digests: two spaces, or two values, may make one recipe."""

    @classmethod
    def of(cls, sampled: Iterable[TrialRecord | Proposal]) -> Drawn:
        """Return what these trials have drawn; references and exact counterparts count as none."""
        drawn = cls()
        for item in sampled:
            drawn.add(item)
        return drawn

    def add(self, sampled: TrialRecord | Proposal) -> None:
        """Add a trial; a reference or an exact counterpart is none that was drawn."""
        if sampled.role == "sampled" and sampled.exact_of is None:
            self.points.add(grid_point(sampled.space or "", sampled.params))
            self.candidates.add(sampled.candidate)

    def __contains__(self, suggestion: Suggestion) -> bool:
        """Whether a draw repeats an earlier one."""
        point = grid_point(suggestion.space, suggestion.params)
        return point in self.points or suggestion.recipe.digest in self.candidates


class Coverage:
    """Whether every recipe that the spaces can express was drawn; never for a continuum.

    Asked again and again while more is drawn, it looks at each point of a grid once.

    Args:
        spec: The study.
    """

    def __init__(self, spec: StudySpec) -> None:
        size = grid_size(spec)
        self._spec = spec
        self._is_small = size is not None and size <= _MAX_LISTED
        self._left = iter(grid_points(spec)) if self._is_small else iter(())
        self._open: Suggestion | None = None
        """The first point that was not drawn when last looked at; None before, and at the end."""

    def is_covered(self, drawn: Drawn) -> bool:
        """Say whether nothing is left.

        Args:
            drawn: What was drawn; never less than before.
        """
        if self._is_small and (self._open is None or self._open in drawn):
            self._open = next(_undrawn(self._spec, self._left, drawn), None)
        return self._is_small and self._open is None


def is_covered(spec: StudySpec, drawn: Drawn) -> bool:
    """Say whether every recipe that the spaces can express was drawn; never for a continuum."""
    return Coverage(spec).is_covered(drawn)


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
        points = list(grid_points(spec))
        shuffled = (points[place] for place in generator.permutation(size))
        return next(_undrawn(spec, shuffled, drawn), None)
    draw = _RandomDraw(generator)
    draws = (suggest(draw, spec) for _ in range(_NUM_DRAWS))
    return next((found for found in draws if found not in drawn), None)


def _undrawn(
    spec: StudySpec, points: Iterable[tuple[SearchSpace, dict[str, Setting]]], drawn: Drawn
) -> Iterator[Suggestion]:
    """Yield the points that were not drawn."""
    for space, params in points:
        if grid_point(space.name, params) in drawn.points:
            continue
        found = Suggestion(space.name, params, recipe_at(spec, space, params))
        if found not in drawn:
            yield found


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
