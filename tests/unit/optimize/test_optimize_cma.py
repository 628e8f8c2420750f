import math

import numpy as np
import pytest

from safemerge.optimize.cma import CmaEs, default_population


def quadratic(scales, best):
    return lambda points: ((points - best) ** 2 * scales).sum(axis=1)


def minimised(search, function, generations):
    for _ in range(generations):
        candidates = search.ask()
        search.tell(candidates, function(candidates))
    return search


def box(count, **settings):
    return CmaEs(
        np.full(count, 0.5),
        **{"sigma": 1 / 6, "low": np.zeros(count), "high": np.ones(count), **settings},
    )


@pytest.mark.parametrize(("count", "expected"), [(1, 4), (2, 6), (3, 7), (96, 17)])
def test_the_population_is_the_tutorials(count, expected):
    assert default_population(count) == expected
    assert box(count).population == expected
    assert box(count).ask().shape == (expected, count)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_the_minimum_of_a_quadratic_is_found(count):
    best = np.linspace(0.2, 0.8, count)
    search = minimised(box(count, seed=1), quadratic(np.ones(count), best), 100)
    np.testing.assert_allclose(search.mean, best, atol=1e-4)
    assert search.sigma < 1e-2


def test_the_covariance_learns_an_ill_conditioned_quadratic():
    scales = np.array([1.0, 1e4])
    rotation = np.array([[math.cos(0.6), -math.sin(0.6)], [math.sin(0.6), math.cos(0.6)]])
    best = np.array([0.4, 0.6])

    def function(points):
        return ((points - best) @ rotation) ** 2 @ scales

    search = minimised(box(2, seed=2), function, 80)
    np.testing.assert_allclose(search.mean, best, atol=1e-3)
    values, _ = search._decomposed()
    assert values.max() / values.min() == pytest.approx(100.0, rel=0.9)


def test_a_minimum_outside_the_box_is_met_at_its_end():
    search = minimised(box(3, seed=3), quadratic(np.ones(3), np.array([-1.0, 2.0, 0.5])), 60)
    np.testing.assert_allclose(search.mean, [0.0, 1.0, 0.5], atol=2e-2)


def test_every_candidate_is_inside_the_box():
    search = box(20, sigma=3.0)
    candidates = search.ask()
    assert candidates.min() >= 0.0
    assert candidates.max() <= 1.0


def test_unscorable_candidates_are_left():
    def broken(points):
        losses = ((points - 0.9) ** 2).sum(axis=1)
        return np.where(points[:, 0] > 0.6, np.inf, losses)

    search = minimised(box(2, seed=4), broken, 60)
    np.testing.assert_allclose(search.mean, [0.6, 0.9], atol=2e-2)


def test_a_generation_is_a_function_of_seed_and_state():
    function = quadratic(np.ones(4), np.full(4, 0.3))
    first = minimised(box(4, seed=7), function, 9)
    part = minimised(box(4, seed=7), function, 4)
    resumed = box(4, seed=7)
    resumed.load_state_dict(part.state_dict())
    minimised(resumed, function, 5)
    assert np.array_equal(resumed.ask(), first.ask())
    assert not np.array_equal(box(4, seed=8).ask(), box(4, seed=7).ask())
