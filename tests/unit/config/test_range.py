"""Ranges with knots: what a drawn number stands for."""

import math

import pytest
from pydantic import ValidationError

from safemerge.config.range import FloatRange


def knots(**changes):
    return FloatRange(**{"low": 1.0, "high": 100.0, "log": True, "knots": [1, 10, 100], **changes})


def test_a_number_snaps_to_the_nearest_knot_in_the_logarithm():
    assert knots().settled(3.0) == 1.0
    assert knots().settled(3.5) == 10.0
    assert knots(log=False).settled(50.0) == 10.0
    assert knots(log=False).settled(56.0) == 100.0


def test_between_knots_a_number_has_three_digits_and_stays_in_the_range():
    line = knots(between="interpolate", low=1.2345, knots=[1.2345, 10, 100])
    assert line.settled(3.14159) == 3.14
    assert line.settled(1.23451) == 1.2345
    assert line.settled(10.001) == 10.0
    assert line.settled(99.99) == 100.0


@pytest.mark.parametrize(
    ("log", "value", "share"), [(True, math.sqrt(1000), 0.5), (False, 55.0, 0.5), (False, 19, 0.1)]
)
def test_a_value_lies_between_its_neighbours(log, value, share):
    low, high, found = knots(log=log, between="interpolate").neighbours(value)
    assert (low, high) == (10, 100)
    assert found == pytest.approx(share)


def test_knots_are_the_grid():
    assert knots().grid() == (1, 10, 100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"knots": [1, 100, 10]}, "knots must ascend from low to high"),
        ({"knots": [2, 100]}, "knots must ascend from low to high"),
        ({"knots": [1]}, "knots must ascend from low to high"),
        ({"log": False, "step": 1.0}, "knots and step exclude each other"),
        ({"knots": None, "between": "interpolate"}, "got 'interpolate' without any"),
    ],
)
def test_wrong_knots_are_told(changes, words):
    with pytest.raises(ValidationError, match=words):
        knots(**changes)


def test_a_range_without_knots_is_written_as_before():
    assert set(FloatRange(low=0, high=1).resolved()) == {"low", "high", "log", "step"}
