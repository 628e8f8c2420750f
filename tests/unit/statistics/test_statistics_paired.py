import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.errors import ScoringError
from safemerge.statistics import (
    bootstrap_interval,
    compare_paired,
    holm_adjusted,
    mcnemar_p_value,
    paired_share_interval,
    sign_flip_p_value,
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


def test_graded_and_grouped_scores_are_bootstrapped():
    graded = compare_paired([0.5, 1.0, 0.25], [0.0, 1.0, 0.5], seed=3)
    assert graded.p_value is None
    assert graded.low <= graded.value <= graded.high
    grouped = compare_paired([1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], groups=list("aabb"))
    assert (grouped.num_groups, grouped.p_value) == (2, None)
    assert (grouped.low, grouped.high) == (0.0, 1.0)


def test_the_bootstrap_is_repeatable_and_depends_on_its_seed():
    values = list(np.random.default_rng(0).normal(size=40))
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_the_bootstrap_agrees_with_the_standard_error():
    values = list(np.random.default_rng(0).normal(size=500))
    low, high = bootstrap_interval(values)
    half = 1.96 * float(np.std(values)) / math.sqrt(500)
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)


def test_groups_of_unequal_size_are_drawn_whole():
    # One group of three and one of one: only four means can come up.
    low, high = bootstrap_interval([1.0, 1.0, 1.0, 0.0], groups=list("aaab"))
    assert (low, high) == (0.0, 1.0)


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


def test_the_grouped_bootstrap_covers_where_a_plain_one_does_not():
    generator = np.random.default_rng(3)
    num_groups, size = 40, 4
    groups = np.repeat(np.arange(num_groups), size).tolist()

    def draw():
        shared = generator.normal(size=num_groups)
        return (np.repeat(shared, size) + 0.5 * generator.normal(size=len(groups))).tolist()

    grouped = coverage(
        lambda values: bootstrap_interval(values, groups=groups, num_resamples=400),
        draw, 0.0, rounds=300,
    )  # fmt: skip
    plain = coverage(
        lambda values: bootstrap_interval(values, num_resamples=400), draw, 0.0, rounds=300
    )
    assert grouped > 0.9
    assert plain < 0.8


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


# --- sign flips -------------------------------------------------------------------------


def test_sign_flips_of_verdicts_estimate_mcnemars_exact_test():
    differences = [1.0] * 9 + [-1.0] * 3 + [0.0] * 30
    found = sign_flip_p_value([differences], num_flips=40_000)
    assert found == pytest.approx(mcnemar_p_value(9, 3), abs=0.006)


def test_every_sign_flip_of_a_few_graded_scores_is_as_likely():
    values = [[0.5, 0.25], [1.0]]
    # |+-0.375 +- 1| over the signs: the observed 1.375 and its mirror are the farthest of 8.
    found = sign_flip_p_value(values, num_flips=40_000)
    assert found == pytest.approx(2 / 8, abs=0.01)


def test_strata_count_by_their_weight():
    up, down = [0.3] * 20, [-0.3] * 20
    assert sign_flip_p_value([up, down], weights=[1.0, 0.0]) < 0.001
    assert sign_flip_p_value([up, down]) == 1.0


@pytest.mark.parametrize(("strata", "weights"), [([], None), ([[]], None), ([[1.0]], [1.0, 2.0])])
def test_sign_flips_refuse_what_has_no_mean(strata, weights):
    with pytest.raises(ScoringError, match="sign flips: need strata"):
        sign_flip_p_value(strata, weights=weights)
