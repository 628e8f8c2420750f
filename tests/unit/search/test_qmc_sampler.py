"""A Sobol sequence over all spaces; float64 throughout."""

import numpy as np
import pytest
from search_driving import finish
from warm_start_driving import BOTH, space

pytest.importorskip("scipy")

NUMBERS = {path: {"low": 0.0, "high": 1.0} for path in BOTH}
QMC = {"storage": "journal", "references": False, "sampler": {"name": "qmc"}}


def drawn(records, path):
    return np.array([record.params[path] for record in records])


def test_each_quarter_of_a_range_is_drawn_as_often(begin):
    records = finish(begin(**QMC, spaces=[space(NUMBERS)], num_trials=16))

    for path in BOTH:
        quarters = np.floor(4 * drawn(records, path)).astype(int)
        assert np.bincount(quarters, minlength=4).tolist() == [4, 4, 4, 4]


def test_several_spaces_and_choices_take_turns(begin):
    first, second = BOTH
    spaces = [
        {**space(NUMBERS), "name": "numbers"},
        {**space({first: NUMBERS[first], second: {"choices": [0.2, 0.8]}}), "name": "choice"},
    ]
    records = finish(begin(**QMC, spaces=spaces, num_trials=16))

    names = [record.space for record in records]
    assert names.count("numbers") == names.count("choice") == 8
    chosen = [record.params[second] for record in records if record.space == "choice"]
    assert set(chosen) == {0.2, 0.8}


def test_a_resumed_run_continues_the_sequence(begin):
    spaces = [space(NUMBERS)]
    first = begin(**QMC, spaces=spaces, num_trials=5)
    finish(first)
    first.close()
    second = begin(**QMC, spaces=spaces, num_trials=16)
    finish(second)

    quarters = np.floor(4 * drawn(second.records, next(iter(BOTH)))).astype(int)
    assert np.bincount(quarters, minlength=4).tolist() == [4, 4, 4, 4]
