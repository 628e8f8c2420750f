import math

import pytest

from safemerge.errors import ScoringError
from safemerge.inference import jackknife_interval


def mean_of(values):
    return lambda places: math.fsum(values[place] for place in places) / len(places)


def test_of_a_mean_it_is_students_interval():
    value, low, high = jackknife_interval(mean_of([-1.0, 0.0, 1.0, 4.0]), range(4))
    half = 3.18245 * math.sqrt(14 / 3) / 2  # squares 4, 1, 0 and 9 around the mean of 1
    assert (value, low, high) == pytest.approx((1.0, 1.0 - half, 1.0 + half), rel=1e-5)


def test_samples_of_one_group_leave_together():
    values = [1.0, 1.0, 0.0, 0.0, -1.0, -1.0]
    grouped = jackknife_interval(mean_of(values), list("aabbcc"))
    assert grouped == pytest.approx(jackknife_interval(mean_of(values[::2]), range(3)))


@pytest.mark.parametrize(("n", "computed"), [(7, 8), (10, 11), (400, 21), (4000, 41)])
def test_an_expensive_aggregate_is_computed_once_a_group(n, computed):
    calls = []
    jackknife_interval(lambda places: calls.append(len(places)) or float(len(calls)), range(n))
    assert len(calls) == computed
    assert min(calls) >= n - math.ceil(n / (computed - 1))


def test_a_share_stays_within_0_and_1_and_a_positive_number_above_0():
    value, low, high = jackknife_interval(mean_of([1.0, 1.0, 1.0, 0.0]), range(4), is_share=True)
    assert (value, high) == (0.75, 1.0)
    assert 0.0 <= low < 0.75
    value, low, high = jackknife_interval(mean_of([1.0, 9.0, 1.0]), range(3))
    assert low > 0
    assert value / low == pytest.approx(high / value)


def test_one_group_says_nothing_of_others():
    assert jackknife_interval(mean_of([3.0, 4.0]), "aa") == (3.5, None, None)
    assert jackknife_interval(mean_of([0.5]), [0], is_share=True) == (0.5, 0.0, 1.0)


def test_no_sample_and_no_finite_value_are_refused():
    with pytest.raises(ScoringError, match="at least one sample"):
        jackknife_interval(mean_of([]), [])
    with pytest.raises(ScoringError, match="the value must be finite; got nan"):
        jackknife_interval(lambda places: math.nan, range(3))
