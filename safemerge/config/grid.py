"""The points of a study's search spaces, where each value varies in finitely many steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import product

from safemerge.config.checkpoint import Setting
from safemerge.config.study import SearchSpace, StudySpec

GridPoint = tuple[str, tuple[tuple[str, Setting], ...]]
"""Name of a space, and its values by path, sorted: what tells two draws apart."""


def grid_size(spec: StudySpec) -> int | None:
    """Return how many points the spaces of a study hold together; None for a continuum."""
    sizes = [_space_size(space) for space in spec.spaces]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def grid_points(spec: StudySpec) -> Iterator[tuple[SearchSpace, dict[str, Setting]]]:
    """Yield every space with every combination of its values, if `grid_size` has a number."""
    for space in spec.spaces:
        grids = [_values(space, path) or () for path in space.vary]
        for values in product(*grids):
            yield space, dict(zip(space.vary, values, strict=True))


def grid_point(space: str, params: Mapping[str, Setting]) -> GridPoint:
    """Return what tells a draw from another one.

    Args:
        space: Name of the space.
        params: Value by dotted path, settled (see `safemerge.search.space.settled`).
    """
    # NOTE: 0.1 + 2 * 0.1 is not quite 0.3, and is the same step.
    known = {
        path: float(f"{value:.12g}") if isinstance(value, float) else value
        for path, value in params.items()
    }
    return space, tuple(sorted(known.items()))


def _space_size(space: SearchSpace) -> int | None:
    grids = [_values(space, path) for path in space.vary]
    known = [len(grid) for grid in grids if grid is not None]
    return math.prod(known) if len(known) == len(grids) else None


def _values(space: SearchSpace, path: str) -> tuple[Setting, ...] | None:
    values = space.vary[path]
    return None if values.interpolates else values.grid()
