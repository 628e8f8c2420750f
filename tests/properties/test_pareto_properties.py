import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna._hypervolume import compute_hypervolume

from safemerge.pareto import dominates, hypervolume, knee_index, non_dominated_mask

# A coarse grid makes ties and duplicates common.
COORDINATE = st.integers(0, 6).map(lambda value: value / 6)
DIRECTION = st.sampled_from(["maximize", "minimize"])


@st.composite
def fronts(draw, max_points=30, dimensions=(1, 4)):
    count = draw(st.integers(*dimensions))
    point = st.tuples(*[COORDINATE] * count)
    points = draw(st.lists(point, min_size=1, max_size=max_points))
    return points, draw(st.lists(DIRECTION, min_size=count, max_size=count))


def worst(directions):
    return [-0.1 if direction == "maximize" else 1.1 for direction in directions]


def dominated_by_definition(first, second, directions):
    better = [
        a > b if direction == "maximize" else a < b
        for a, b, direction in zip(first, second, directions, strict=True)
    ]
    worse = [
        a < b if direction == "maximize" else a > b
        for a, b, direction in zip(first, second, directions, strict=True)
    ]
    return any(better) and not any(worse)


@given(fronts())
def test_the_front_equals_the_quadratic_definition(case):
    points, directions = case
    expected = [
        not any(dominated_by_definition(other, point, directions) for other in points)
        for point in points
    ]
    assert non_dominated_mask(points, directions).tolist() == expected


@given(fronts(max_points=2))
def test_dominance_equals_its_definition(case):
    points, directions = case
    expected = dominated_by_definition(points[0], points[-1], directions)
    assert dominates(points[0], points[-1], directions) is expected


@settings(max_examples=60)
@given(fronts(max_points=7))
def test_hypervolume_equals_inclusion_and_exclusion(case):
    points, directions = case
    reference = np.array(worst(directions))
    signs = np.array([-1 if direction == "maximize" else 1 for direction in directions])
    losses, corner = np.array(points) * signs, reference * signs
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(losses, size):
            edges = np.clip(corner - np.max(subset, axis=0), 0, None)
            total += (-1) ** (size + 1) * np.prod(edges)
    assert hypervolume(points, reference, directions) == pytest.approx(total, abs=1e-9)


@settings(max_examples=60)
@given(fronts(max_points=20, dimensions=(2, 5)))
def test_hypervolume_equals_optunas(case):
    points, directions = case
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    corner = np.array(worst(directions)) * signs
    expected = compute_hypervolume(np.array(points) * signs, corner)
    assert hypervolume(points, worst(directions), directions) == pytest.approx(expected, abs=1e-9)


def test_hypervolume_in_three_dimensions_agrees_with_sampling():
    random = np.random.default_rng(5)
    points = random.uniform(size=(25, 3))
    samples = random.uniform(size=(40_000, 3))
    hit = np.zeros(len(samples), dtype=bool)
    for point in points:
        hit |= np.all(samples >= point, axis=1)
    # Four standard errors of a share over 40 000 samples are at most 0.01.
    assert hypervolume(points, (1, 1, 1), ["minimize"] * 3) == pytest.approx(hit.mean(), abs=0.01)


@given(fronts(max_points=12), st.data())
def test_adding_a_point_never_lowers_the_hypervolume(case, data):
    points, directions = case
    extra = data.draw(st.tuples(*[COORDINATE] * len(directions)))
    before = hypervolume(points, worst(directions), directions)
    after = hypervolume([*points, extra], worst(directions), directions)
    assert after >= before - 1e-12
    if not non_dominated_mask([*points, extra], directions)[-1]:
        assert after == pytest.approx(before, abs=1e-12)


@given(fronts(max_points=12), st.randoms(use_true_random=False))
def test_order_and_duplicates_do_not_change_the_hypervolume(case, random):
    points, directions = case
    shuffled = [*points, *points[:3]]
    random.shuffle(shuffled)
    assert hypervolume(shuffled, worst(directions), directions) == pytest.approx(
        hypervolume(points, worst(directions), directions), abs=1e-12
    )


@given(fronts(max_points=10), st.floats(0.1, 10), st.floats(-5, 5))
def test_hypervolume_scales_with_one_objective_and_ignores_shifts(case, scale, shift):
    points, directions = case
    factors = np.ones(len(directions))
    factors[0] = scale
    moved = hypervolume(
        np.array(points) * factors + shift,
        np.array(worst(directions)) * factors + shift,
        directions,
    )
    still = hypervolume(points, worst(directions), directions)
    assert moved == pytest.approx(still * scale, abs=1e-8)


@given(fronts())
def test_the_knee_lies_on_the_front(case):
    points, directions = case
    assert non_dominated_mask(points, directions)[knee_index(points, directions)]


@given(fronts(dimensions=(2, 2)))
def test_the_knee_in_two_objectives_is_furthest_below_the_line(case):
    points, directions = case
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    front = (np.array(points) * signs)[non_dominated_mask(points, directions)]
    low, span = front.min(axis=0), np.ptp(front, axis=0)
    chosen = (np.array(points[knee_index(points, directions)]) * signs - low) / np.where(
        span > 0, span, 1
    )
    every = (front - low) / np.where(span > 0, span, 1)
    # Between the extremes (0, 1) and (1, 0) the distance is (1 - x - y) / sqrt(2).
    assert chosen.sum() == pytest.approx(every.sum(axis=1).min())
