"""P-values by all sign flips agree with their enumeration, and their bounds hold."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemerge.errors import ScoringError
from safemerge.inference import flip_p_value, mcnemar_p_value
from safemerge.inference.permutation import MAX_BITS, _on_lattice


def enumerated(strata, weights=None):
    """The definition: the share of all signs whose sum is at least as far from 0."""
    steps = [
        weight * value / len(item)
        for item, weight in zip(strata, weights or [1.0] * len(strata), strict=True)
        for value in item
    ]
    observed = abs(sum(steps))
    signs = np.array(list(product((-1, 1), repeat=len(steps))))
    return float((np.abs(signs @ np.array(steps)) >= observed - 1e-9).mean())


@pytest.mark.parametrize(
    ("left", "right", "same"), [(12, 3, 45), (0, 5, 0), (40, 31, 10), (3, 3, 9)]
)
def test_of_verdicts_in_one_stratum_it_is_mcnemars_test(left, right, same):
    found = flip_p_value([[1.0] * left + [-1.0] * right + [0.0] * same])
    assert found.low == found.high == pytest.approx(mcnemar_p_value(left, right), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([-1.0, -0.5, -0.3, 0.0, 0.25, 0.7, 1.0]), min_size=1, max_size=5),
        min_size=1,
        max_size=2,
    )
)
def test_it_is_the_share_of_signs_that_are_as_far_from_zero(strata):
    found = flip_p_value(strata)
    assert found.low == found.high == pytest.approx(enumerated(strata), rel=1e-9)


def test_graded_scores_of_few_groups_are_summed_exactly():
    values = np.random.default_rng(1).normal(0.3, 0.5, 14)
    found = flip_p_value([values])
    assert found.low == found.high == pytest.approx(enumerated([values]), rel=1e-9)


def test_suites_of_unequal_size_are_pooled_by_their_weight():
    generator = np.random.default_rng(2)
    strata = [generator.integers(-1, 2, n).astype(float) for n in (7, 9)]
    weights = [0.25, 0.75]
    found = flip_p_value(strata, weights=weights)
    assert found.low == found.high == pytest.approx(enumerated(strata, weights), rel=1e-9)
    assert flip_p_value([[0.3] * 20, [-0.3] * 20], weights=[1.0, 0.0]).high < 1e-5
    assert flip_p_value([[0.3] * 20, [-0.3] * 20]).low == 1.0


def test_of_many_graded_scores_the_bounds_hold_what_sampling_estimates():
    generator = np.random.default_rng(3)
    values = generator.normal(0.1, 0.5, 90)
    found = flip_p_value([values])
    signs = generator.choice([-1.0, 1.0], (40_000, 90))
    sampled = float((np.abs(signs @ values) >= abs(values.sum())).mean())
    assert found.low < found.high < 1.2 * found.low
    assert found.low - 0.005 < sampled < found.high + 0.005
    finer = flip_p_value([values], bits=MAX_BITS)
    assert found.low <= finer.low < finer.high <= found.high


@pytest.mark.parametrize("shift", [0.05, 0.3, 0.8])
def test_the_bounds_of_a_lattice_hold_the_exact_value(shift):
    values = np.random.default_rng(4).normal(shift, 0.5, 16)
    scaled = np.abs(values) / np.abs(values).max()
    target = abs(values.sum()) / np.abs(values).max()
    bounds = _on_lattice(scaled, target, 12)
    exact = enumerated([values])
    assert bounds.low <= exact <= bounds.high


def test_no_p_value_is_below_what_the_number_of_groups_allows():
    values = np.random.default_rng(5).random(300) + 0.1
    found = flip_p_value([values])
    assert 0 < found.low < found.high < 1e-9
    assert flip_p_value([[0.0, 0.0]]) == (1.0, 1.0)


@pytest.mark.parametrize(("strata", "weights"), [([], None), ([[]], None), ([[1.0]], [1.0, 2.0])])
def test_what_has_no_mean_is_refused(strata, weights):
    with pytest.raises(ScoringError, match="sign flips: need strata"):
        flip_p_value(strata, weights=weights)
