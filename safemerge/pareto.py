"""Pareto dominance, front, exact hypervolume and knee, with directions made explicit.

Values are arrays of shape (points, objectives); `directions` says for each objective whether
it is maximised or minimised. Inside, everything is turned into *losses* (lower is better).

References:
    While, Bradstreet and Barone, A Fast Way of Calculating Exact Hypervolumes, IEEE
    Transactions on Evolutionary Computation 16(1), 2012 ("WFG").
    Das, On characterizing the "knee" of the Pareto curve based on normal-boundary
    intersection, Structural Optimization 18, 1999.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from safemerge.errors import StudyError

Point = npt.NDArray[Any] | Sequence[float | int]
"""Objective values of one point, shape (objectives,)."""
Values = npt.NDArray[Any] | Sequence[Point]
"""Objective values, shape (points, objectives)."""
_Array = npt.NDArray[np.float64]

_TIE = 1e-9
"""Normalised distances closer than this count as equal when the knee is chosen."""


def dominates(first: Point, second: Point, directions: Sequence[str]) -> bool:
    """Tell whether one point dominates another.

    It does if it is nowhere worse and somewhere strictly better; equal points do not
    dominate each other. Infinities are compared as numbers.

    Args:
        first: Objective values of one point, shape (objectives,).
        second: Objective values of the other, same shape.
        directions: ``maximize`` or ``minimize`` for each objective.

    Returns:
        True if `first` dominates `second`.

    Raises:
        StudyError: If a value is NaN, or shapes and directions disagree.
    """
    left, right = _losses([_row(first)], directions), _losses([_row(second)], directions)
    return bool(np.all(left <= right) and np.any(left < right))


def non_dominated_mask(values: Values, directions: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    Duplicates of a non-dominated point are all marked. The order of the points does not
    matter. Cost is one pass over the points, done with arrays, for each distinct point kept.

    Args:
        values: Objective values, shape (points, objectives); no points give an empty mask.
        directions: ``maximize`` or ``minimize`` for each objective.

    Returns:
        Boolean array of shape (points,).

    Raises:
        StudyError: If a value is NaN, or shapes and directions disagree.
    """
    losses = _losses(values, directions)
    mask = np.zeros(len(losses), dtype=np.bool_)
    rows = np.lexsort(losses.T[::-1])
    while len(rows):
        # NOTE: rows are sorted, so nothing that is left can dominate the first one.
        first, rest = losses[rows[0]], losses[rows]
        mask[rows[np.all(rest == first, axis=1)]] = True
        rows = rows[~np.all(rest >= first, axis=1)]
    return mask


def hypervolume(points: Values, reference: Point, directions: Sequence[str]) -> float:
    """Return the exact volume that the points dominate, up to a reference point.

    A sweep in two dimensions, slices of sweeps in three, WFG above; meant for at most five
    objectives and a few hundred points. Dominated points and duplicates change nothing. A
    point that is not strictly better than the reference in every objective adds nothing.

    Args:
        points: Objective values, shape (points, objectives); no points have volume 0.
        reference: The reference point, shape (objectives,): worse than any point that counts.
        directions: ``maximize`` or ``minimize`` for each objective.

    Returns:
        The volume, 0 or more, in the product of the objectives' units.

    Raises:
        StudyError: If a value is NaN or infinite, or shapes and directions disagree.

    References:
        While et al. 2012, section 3 (exclusive volumes over limited sets).
    """
    losses = _losses(points, directions)
    corner = _losses([_row(reference)], directions)[0]
    for what, array in (("points", losses), ("reference", corner)):
        if not np.all(np.isfinite(array)):
            raise StudyError(
                f"hypervolume: {what} must be finite; got {_first_bad(array, np.isinf)}. "
                "Leave such points out."
            )
    inside = losses[np.all(losses < corner, axis=1)]
    return _volume(_front(inside), corner)


def knee_index(values: Values, directions: Sequence[str]) -> int:
    """Choose the knee of a front: the point that bulges most towards the ideal.

    Losses of the non-dominated points are scaled to [0, 1] per objective. A hyperplane goes
    through each objective's best point (in two objectives: the line between the extremes);
    the knee is the point furthest from it on the ideal's side. Where those points do not
    span a plane with a positive normal, the plane of equal loss sums is taken instead. Ties
    (closer than 1e-9) go to the smaller loss sum, then to the lower index, so one point or
    two points give a defined answer. Dominated points are never chosen.

    Args:
        values: Objective values, shape (points, objectives), at least one point.
        directions: ``maximize`` or ``minimize`` for each objective.

    Returns:
        Index into `values`.

    Raises:
        StudyError: If there are no points, a value is NaN or infinite, or shapes and
            directions disagree.

    References:
        Das 1999, section 3. Departure: the plane goes through each objective's best point
        after scaling by the front's own range, so that units do not matter.
    """
    losses = _losses(values, directions)
    if len(losses) == 0:
        raise StudyError("knee: needs at least one point; got none.")
    if not np.all(np.isfinite(losses)):
        raise StudyError(f"knee: values must be finite; got {_first_bad(losses, np.isinf)}.")
    kept = np.flatnonzero(non_dominated_mask(values, directions))
    front = losses[kept]
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    scaled = (front - low) / np.where(span > 0, span, 1.0)
    normal = _normal(scaled)
    distances = (1.0 - scaled @ normal) / np.linalg.norm(normal)
    sums = scaled.sum(axis=1)
    tied = np.flatnonzero(distances >= distances.max() - _TIE)
    best = tied[sums[tied] <= sums[tied].min() + _TIE]
    return int(kept[best[0]])


def _normal(scaled: _Array) -> _Array:
    """Normal a of the plane a.x = 1 through each objective's best point, all entries > 0."""
    count = scaled.shape[1]
    flat = np.ones(count)
    # The best point of an objective; of equal ones, the one with the least total loss.
    extremes = np.array(
        [scaled[np.lexsort((scaled.sum(axis=1), scaled[:, axis]))[0]] for axis in range(count)]
    )
    if np.linalg.matrix_rank(extremes) < count:
        return flat
    normal: _Array = np.linalg.solve(extremes, flat)
    return normal if np.all(normal > 0) else flat


def _volume(front: _Array, corner: _Array) -> float:
    """Volume of mutually non-dominated, distinct losses below `corner`."""
    if len(front) == 0:
        return 0.0
    dimensions = len(corner)
    if dimensions == 1:
        return float(corner[0] - front[:, 0].min())
    if dimensions == 2:
        return _area(front, corner)
    if dimensions == 3:
        return _slices(front, corner)
    # WFG: worst first in the last objective makes the limited sets small.
    ordered = front[np.argsort(-front[:, -1], kind="stable")]
    total = 0.0
    for index, point in enumerate(ordered):
        exclusive = float(np.prod(corner - point))
        if index + 1 < len(ordered):
            limited = np.maximum(ordered[index + 1 :], point)
            exclusive -= _volume(_front(limited), corner)
        total += exclusive
    return total


def _area(front: _Array, corner: _Array) -> float:
    """Sweep a two-objective front from the left."""
    ordered = front[np.argsort(front[:, 0], kind="stable")]
    ceilings = np.concatenate(([corner[1]], ordered[:-1, 1]))
    return float(np.sum((corner[0] - ordered[:, 0]) * (ceilings - ordered[:, 1])))


def _slices(front: _Array, corner: _Array) -> float:
    """Stack slices along the last of three objectives, each a growing staircase.

    The staircase keeps first losses ascending and second losses descending; adding a step
    changes the area only between its neighbours.
    """
    xs: list[float] = []
    ys: list[float] = []
    area = total = 0.0
    ordered = front[np.argsort(front[:, 2], kind="stable")]
    height = float(ordered[0, 2])
    for x, y, z in ordered.tolist():
        total += area * (z - height)
        height = z
        start = bisect_left(xs, x)
        ceiling = ys[start - 1] if start else float(corner[1])
        if ceiling <= y or (start < len(xs) and xs[start] == x and ys[start] <= y):
            continue
        stop, left = start, x
        while stop < len(xs) and ys[stop] >= y:
            area += (xs[stop] - left) * (ceiling - y)
            left, ceiling = xs[stop], ys[stop]
            stop += 1
        right = xs[stop] if stop < len(xs) else float(corner[0])
        area += (right - left) * (ceiling - y)
        xs[start:stop], ys[start:stop] = [x], [y]
    return total + area * (float(corner[2]) - height)


def _front(losses: _Array) -> _Array:
    """Non-dominated distinct rows."""
    rest = np.unique(losses, axis=0)
    kept: list[_Array] = []
    while len(rest):
        # NOTE: rows come sorted, so nothing that is left can dominate the first one.
        kept.append(rest[0])
        rest = rest[~np.all(rest >= rest[0], axis=1)]
    return np.array(kept).reshape(len(kept), losses.shape[1])


def _losses(values: Values, directions: Sequence[str]) -> _Array:
    """Return values as lower-is-better floats of shape (points, objectives)."""
    unknown = [item for item in directions if item not in ("maximize", "minimize")]
    if unknown or not directions:
        got = repr(unknown[0]) if unknown else "none"
        raise StudyError(f"directions: each must be 'maximize' or 'minimize'; got {got}.")
    array = np.asarray(values, dtype=np.float64)
    if array.shape[0] == 0:
        return np.empty((0, len(directions)))
    if array.ndim != 2 or array.shape[1] != len(directions):
        raise StudyError(
            f"objective values: shape must be (points, {len(directions)}); got {array.shape}."
        )
    if np.any(np.isnan(array)):
        raise StudyError(
            f"objective values: must not be NaN; got {_first_bad(array, np.isnan)}. "
            "Leave failed trials out."
        )
    signs = np.array([-1.0 if item == "maximize" else 1.0 for item in directions])
    losses: _Array = array * signs
    return losses


def _row(values: Point) -> _Array:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _first_bad(array: _Array, test: Callable[[_Array], npt.NDArray[np.bool_]]) -> str:
    rows = np.atleast_2d(array)
    row, column = (int(item) for item in np.argwhere(test(rows))[0])
    return f"{abs(rows[row, column])} at point {row}, objective {column}"
