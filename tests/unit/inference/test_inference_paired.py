import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.errors import ScoringError
from safemerge.inference import (
    compare_paired,
    group_sums,
    holm_adjusted,
    mcnemar_p_value,
    paired_mean_interval,
    paired_share_interval,
)


@pytest.mark.parametrize(
    ("left", "right", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        # Twice the tail of 2 and fewer of 12 fair tosses: 2 * (1 + 12 + 66) / 4096.
        (10, 2, 158 / 4096),
    ],
)
def test_mcnemars_exact_test_is_a_sign_test(left, right, p_value):
    assert mcnemar_p_value(left, right) == pytest.approx(p_value, rel=1e-12)


def test_mcnemar_is_exact_for_thousands_of_pairs():
    # The normal approximation with continuity correction is near, and the sum does not overflow.
    left, right = 5200, 4800
    z = (left - right - 1) / math.sqrt(left + right)
    assert mcnemar_p_value(left, right) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-2)


def test_mcnemar_refuses_negative_counts():
    with pytest.raises(ScoringError, match="got -1 and 2"):
        mcnemar_p_value(-1, 2)


def test_two_candidates_are_compared_on_the_same_prompts():
    left = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    right = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    found = compare_paired(left, right)
    assert (found.left_only, found.right_only, found.n, found.num_groups) == (3, 1, 6, 6)
    assert found.value == pytest.approx(2 / 6)
    assert (found.low, found.high) == paired_share_interval(3, 1, 6)
    assert found.p_value == mcnemar_p_value(3, 1)


def test_equal_answers_still_leave_doubt():
    found = compare_paired([1.0] * 20, [1.0] * 20)
    assert (found.value, found.p_value) == (0.0, 1.0)
    assert found.low < -0.05
    assert found.high > 0.05


def test_bonett_and_price_add_one_pair_to_each_side():
    # Shares 4/32 and 2/32: centre 2/32, half width z * sqrt((6/32 - 1/256) / 32).
    low, high = paired_share_interval(3, 1, 30)
    half = 1.959964 * math.sqrt((6 / 32 - (2 / 32) ** 2) / 32)
    assert (low, high) == pytest.approx((2 / 32 - half, 2 / 32 + half), abs=1e-6)


def test_graded_and_grouped_scores_have_an_exact_test_and_students_interval():
    graded = compare_paired([0.5, 1.0, 0.25], [0.0, 1.0, 0.5])
    assert graded.p_value == 1.0, "every sign of 0.5 and 0.25 is at least as far from 0"
    assert graded.low <= graded.value <= graded.high
    grouped = compare_paired([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], groups=list("aabb"))
    assert (grouped.num_groups, grouped.p_value) == (2, 1.0)
    assert (grouped.low, grouped.high) == (-1.0, 1.0), "two groups tell next to nothing"


def mean_interval(values, groups=None):
    return paired_mean_interval([group_sums(values, groups)], weights=[1.0])


def test_of_many_values_the_interval_is_that_of_the_standard_error():
    values = np.random.default_rng(0).uniform(-0.5, 0.5, size=2000)
    low, high = mean_interval(values)
    half = 1.96 * float(np.std(values)) / math.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.01)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=1e-12)


def test_an_interval_has_a_width_where_nothing_differs():
    low, high = mean_interval([0.0] * 30)
    assert high == -low > 0.08
    assert mean_interval([0.0] * 300)[1] < high / 3


def test_one_group_tells_nothing_about_others():
    assert mean_interval([0.2, 0.3, 0.1], list("aaa")) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("left", "right", "groups"), [([], [], None), ([1.0], [1.0, 0.0], None), ([1.0], [1.0], [])]
)
def test_what_is_not_paired_is_refused(left, right, groups):
    with pytest.raises(ScoringError, match="needs the same samples on both sides"):
        compare_paired(left, right, groups=groups)


def test_counts_beyond_the_samples_are_refused():
    with pytest.raises(ScoringError, match="got 3 and 2 of 4"):
        paired_share_interval(3, 2, 4)


def coverage(interval, draw, truth, *, rounds):
    inside = 0
    for _ in range(rounds):
        low, high = interval(draw())
        inside += low <= truth <= high
    return inside / rounds


@pytest.mark.parametrize(("n", "toward", "away"), [(50, 0.1, 0.02), (100, 0.1, 0.1)])
def test_the_paired_interval_covers_as_it_says(n, toward, away):
    generator = np.random.default_rng(2)
    found = coverage(
        lambda counts: paired_share_interval(int(counts[0]), int(counts[1]), n),
        lambda: generator.multinomial(n, [toward, away, 1 - toward - away]),
        toward - away,
        rounds=4000,
    )
    assert 0.935 < found < 0.985


def grades(generator, n):
    return generator.beta(2, 5, n) - generator.beta(2, 4, n), None, 2 / 7 - 2 / 6


def mostly_equal(generator, n):
    drawn = np.where(generator.random(n) < 0.8, 0.0, generator.uniform(-0.6, 1.0, n))
    return drawn, None, 0.2 * 0.2


def verdicts_in_groups(generator, n):
    shared = generator.beta(0.3, 0.5, n)
    drawn = generator.random((n, 4)) < shared[:, None]
    return drawn.ravel().astype(float), np.repeat(np.arange(n), 4).tolist(), 0.3 / 0.8


@pytest.mark.parametrize("n", [5, 12, 30])
@pytest.mark.parametrize("made", [grades, mostly_equal, verdicts_in_groups])
def test_the_interval_of_few_graded_or_grouped_samples_covers_as_it_says(made, n):
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(600):
        values, groups, truth = made(generator, n)
        low, high = mean_interval(values, groups)
        inside += low <= truth <= high
    assert inside / 600 > 0.92


# --- Holm -------------------------------------------------------------------------------


def test_holm_multiplies_by_what_is_left_and_never_falls():
    assert holm_adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted([0.9, 0.6]) == [1.0, 1.0]
    assert holm_adjusted([]) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_as_the_stepwise_procedure_does(p_values, alpha):
    rejected = set()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        rejected.add(index)
    adjusted = holm_adjusted(p_values)
    assert {index for index, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(ScoringError, match=r"got 1\.5"):
        holm_adjusted([0.1, 1.5])
