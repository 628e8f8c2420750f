"""A study's search spaces as one unit cube, for models of what was found there.

Each varied number is a column in [0, 1] (in logarithms where its range is), each choice of a
categorical one is a column that is 1 where it is taken. Spaces share the columns of equal paths,
so that what one method shows about a weight informs the others; a column that a space lacks stays
at 0.5 there. With several spaces, each has a column that is 1 for it alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Array = npt.NDArray[np.float64]

INACTIVE = 0.5
"""Coordinate of a column in a space that lacks it."""


class Pattern(NamedTuple):
    """One combination of a space and its categorical values: the rest is continuous."""

    space: str
    fixed: dict[int, float]
    """Coordinate by column, of all columns that are not free."""
    free: tuple[int, ...]
    """Columns that vary."""


class _Number(NamedTuple):
    column: int
    low: float
    high: float
    log: bool


class Encoding:
    """Parameters to points of the unit cube, and back.

    Args:
        spaces: Distribution by parameter name, by space.
        chooser: Name of the parameter that holds the space; None with a single space.
        paths: Path by parameter name; parameters of equal path share columns. Left out: the names.
        groups: Name of the group of a path, for paths whose values are one coefficient at several
            depths; paths left out stand alone.
    """

    def __init__(
        self,
        spaces: Mapping[str, Mapping[str, BaseDistribution]],
        *,
        chooser: str | None = None,
        paths: Mapping[str, str] | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self.spaces = {name: dict(found) for name, found in spaces.items()}
        self.chooser = chooser
        self._paths = dict(paths or {})
        self._columns: dict[tuple[str, Any], int] = {}
        if len(self.spaces) > 1:
            for name in self.spaces:
                self._column("", name)
        self._numbers: dict[str, _Number] = {}
        for name, distribution in self._all():
            path = self._paths.get(name, name)
            if isinstance(distribution, CategoricalDistribution):
                for choice in distribution.choices:
                    self._column(path, choice)
                continue
            number = _number(distribution)
            known = self._numbers.get(path)
            self._numbers[path] = _Number(
                self._column(path, None),
                number.low if known is None else min(known.low, number.low),
                number.high if known is None else max(known.high, number.high),
                number.log if known is None else known.log and number.log,
            )
        self.width = len(self._columns)
        """Columns of the cube."""
        by_group: dict[str, list[int]] = {}
        for path, group in (groups or {}).items():
            if path in self._numbers:
                by_group.setdefault(group, []).append(self._numbers[path].column)
        self.groups = tuple(tuple(found) for found in by_group.values() if len(found) > 1)
        """Columns of one coefficient at several depths."""

    def point(self, params: Mapping[str, Any]) -> Array | None:
        """Return the point of some parameters, shape (width,); None if they are of no space."""
        names = list(self.spaces)
        space = params.get(self.chooser, names[0]) if self.chooser else names[0]
        if space not in self.spaces or not set(self.spaces[space]) <= set(params):
            return None
        point = np.full(self.width, INACTIVE)
        for (path, value), column in self._columns.items():
            if value is not None:
                point[column] = float(path == "" and value == space)
        for name, distribution in self.spaces[space].items():
            path = self._paths.get(name, name)
            if isinstance(distribution, CategoricalDistribution):
                point[self._columns[path, params[name]]] = 1.0
            else:
                number = self._numbers[path]
                point[number.column] = _scaled(number, float(params[name]))
        return point

    def params(self, pattern: Pattern, point: Array) -> dict[str, Any]:
        """Return the parameters of a pattern's point, within their ranges and on their steps."""
        found: dict[str, Any] = {} if self.chooser is None else {self.chooser: pattern.space}
        for name, distribution in self.spaces[pattern.space].items():
            path = self._paths.get(name, name)
            if isinstance(distribution, CategoricalDistribution):
                found[name] = next(
                    choice
                    for choice in distribution.choices
                    if pattern.fixed[self._columns[path, choice]] == 1.0
                )
            else:
                number = self._numbers[path]
                found[name] = _legal(distribution, _unscaled(number, float(point[number.column])))
        return found

    def path(self, name: str) -> str:
        """Return the path of a parameter, which equal ones of other spaces share."""
        return self._paths.get(name, name)

    def parameters(self) -> dict[str, BaseDistribution]:
        """Return the distributions of all spaces by name, with that of the choice of a space."""
        found = {name: item for space in self.spaces.values() for name, item in space.items()}
        return found if self.chooser is None else {**found, self.chooser: self.choice}

    @property
    def choice(self) -> CategoricalDistribution:
        """The distribution of the parameter that holds the space."""
        return CategoricalDistribution(tuple(self.spaces))

    @property
    def num_patterns(self) -> int:
        """How many `patterns` there are."""
        return sum(
            math.prod(
                len(item.choices)
                for item in distributions.values()
                if isinstance(item, CategoricalDistribution)
            )
            for distributions in self.spaces.values()
        )

    def patterns(self) -> list[Pattern]:
        """Return every combination of a space and its categorical values."""
        found = []
        for space, distributions in self.spaces.items():
            choices = {
                self._paths.get(name, name): item.choices
                for name, item in distributions.items()
                if isinstance(item, CategoricalDistribution)
            }
            free = {
                self._numbers[self._paths.get(name, name)].column: item
                for name, item in distributions.items()
                if not isinstance(item, CategoricalDistribution)
            }
            for values in itertools.product(*choices.values()):
                taken = dict(zip(choices, values, strict=True))
                fixed = {
                    column: self._fixed(space, taken, path, value)
                    for (path, value), column in self._columns.items()
                    if column not in free
                }
                found.append(Pattern(space, fixed, tuple(sorted(free))))
        return found

    def spread(self, pattern: Pattern, free: Array) -> Array:
        """Return points of a pattern, shape (n, width), from their free coordinates (n, k)."""
        points = np.empty((len(free), self.width))
        for column, value in pattern.fixed.items():
            points[:, column] = value
        points[:, pattern.free] = free
        return points

    def _fixed(self, space: str, taken: Mapping[str, Any], path: str, value: Any) -> float:
        if value is None:
            return INACTIVE
        return float(value == (space if path == "" else taken.get(path)))

    def _column(self, path: str, value: Any) -> int:
        return self._columns.setdefault((path, value), len(self._columns))

    def _all(self) -> Sequence[tuple[str, BaseDistribution]]:
        return [item for found in self.spaces.values() for item in found.items()]


def _number(distribution: BaseDistribution) -> _Number:
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"encoding: needs a number or a choice; got {distribution}.")
    return _Number(0, float(distribution.low), float(distribution.high), distribution.log)


def _scaled(number: _Number, value: float) -> float:
    low, high = number.low, number.high
    if number.log:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float(np.clip((value - low) / ((high - low) or 1.0), 0.0, 1.0))


def _unscaled(number: _Number, share: float) -> float:
    if number.log:
        low, high = np.log(number.low), np.log(number.high)
        return float(np.exp(low + share * (high - low)))
    return number.low + share * (number.high - number.low)


def _legal(distribution: BaseDistribution, value: float) -> float | int:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, step = float(distribution.low), distribution.step
    if step is not None:
        value = low + round((value - low) / step) * step
    value = min(max(value, low), float(distribution.high))
    return round(value) if isinstance(distribution, IntDistribution) else value
