import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.errors import ScoringError
from safemerge.inference import (
    Z_95,
    clustered_interval,
    design_effect,
    student_quantile,
    wilson_interval,
)


def root(function, inside, outside):
    """Where a function changes sign: above 0 at `outside`, at most 0 at `inside`."""
    for _ in range(200):
        middle = (inside + outside) / 2
        if function(middle) > 0:
            outside = middle
        else:
            inside = middle
    return (inside + outside) / 2


def score_test_interval(mean, n):
    """Shares that a two-sided score test at 5 % does not reject, found by bisection."""

    def excess(share):
        return abs(mean - share) - Z_95 * math.sqrt(share * (1 - share) / n)

    low = 0.0 if mean == 0 else root(excess, mean, 0.0)
    high = 1.0 if mean == 1 else root(excess, mean, 1.0)
    return low, high


def test_the_quantile_is_the_normal_distributions():
    assert pytest.approx(NormalDist().inv_cdf(0.975), abs=1e-12) == Z_95


@pytest.mark.parametrize("n", [1, 2, 5, 40, 1000])
def test_the_interval_is_what_the_score_test_does_not_reject(n):
    for hits in {0, 1, n // 3, n // 2, n - 1, n}:
        low, high = wilson_interval(hits / n, n)
        expected = score_test_interval(hits / n, n)
        assert (low, high) == pytest.approx(expected, abs=1e-12)


def test_the_worked_example_of_ten_in_forty():
    # (p + z2/2n -/+ z sqrt(p q/n + z2/4n2)) / (1 + z2/n), by hand with z2 = 3.841459.
    assert wilson_interval(0.25, 40) == pytest.approx((0.141871, 0.401940), abs=1e-6)


@pytest.mark.parametrize("n", [1, 3, 80])
def test_no_hit_and_all_hits_have_one_sided_closed_forms(n):
    z2 = Z_95**2
    low, high = wilson_interval(0.0, n)
    assert low == 0.0
    assert high == pytest.approx(z2 / (n + z2), abs=1e-15)
    low, high = wilson_interval(1.0, n)
    assert low == pytest.approx(n / (n + z2), abs=1e-15)
    assert high == 1.0


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_the_interval_holds_the_share_and_mirrors_with_it(n, share):
    low, high = wilson_interval(share, n)
    assert 0.0 <= low <= share <= high <= 1.0
    mirrored = wilson_interval(1 - share, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)


@pytest.mark.parametrize(("mean", "n"), [(0.5, 0), (-0.01, 5), (1.01, 5), (math.nan, 5)])
def test_what_is_no_share_of_a_sample_is_refused(mean, n):
    with pytest.raises(ScoringError, match=f"needs n >= 1 and a share; got n={n}, mean={mean}"):
        wilson_interval(mean, n)


# --- Student's t ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    # Abramowitz and Stegun, table 26.10, two-sided 95 %.
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (120, 1.980)],
)
def test_student_quantiles_are_the_tables(degrees, quantile):
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, abs=6e-4)


def test_student_with_one_degree_is_cauchys():
    assert student_quantile(0.9, 1) == pytest.approx(math.tan(math.pi * 0.4), rel=1e-12)


@pytest.mark.parametrize("probability", [0.6, 0.975, 0.9995])
def test_the_series_continues_the_sum(probability):
    exact, series = (student_quantile(probability, degrees) for degrees in (400, 401))
    at_most = NormalDist().inv_cdf(probability)
    step = (at_most**3 + at_most) / 4 * (1 / 400 - 1 / 401)
    assert exact - series == pytest.approx(step, rel=0.05)
    assert at_most < student_quantile(probability, 10**6) < at_most + 1e-5


def test_student_quantiles_are_symmetric():
    assert student_quantile(0.1, 7) == -student_quantile(0.9, 7)
    assert student_quantile(0.5, 4) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_student_quantiles_out_of_range_are_refused(probability, degrees):
    with pytest.raises(ScoringError, match=f"got {probability} and {degrees}"):
        student_quantile(probability, degrees)


# --- groups -----------------------------------------------------------------------------


def test_samples_of_their_own_have_the_plain_interval():
    values = [1.0] * 7 + [0.0] * 3
    assert clustered_interval(values, list(range(10))) == wilson_interval(0.7, 10)


def test_copies_add_nothing_to_an_effective_sample():
    values, groups = [1.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d"]
    once = design_effect(values * 3, groups * 3)
    # n/(G-1) * G * sum (3 d)^2 / n^2 over m(1-m)/n, with G = 4, n = 12, m = 0.75.
    assert once == pytest.approx(4 / 3 * 3)
    low, high = clustered_interval(values * 3, groups * 3)
    assert (low, high) == wilson_interval(0.75, 12 / once, critical=student_quantile(0.975, 3))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_nothing_varies_a_group_counts_as_one_sample(value):
    values, groups = [value] * 6, ["a", "a", "b", "b", "c", "c"]
    assert design_effect(values, groups) == 2.0
    critical = student_quantile(0.975, 2)
    assert clustered_interval(values, groups) == wilson_interval(value, 3, critical=critical)


def test_one_group_is_one_sample_and_nearly_nothing_is_known():
    low, high = clustered_interval([1.0, 0.0, 1.0], ["a"] * 3)
    assert low < 0.01
    assert high > 0.99


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0]), st.integers(0, 5)), min_size=1))
def test_groups_never_narrow_an_interval_and_it_holds_the_mean(pairs):
    values, groups = [value for value, _ in pairs], [group for _, group in pairs]
    mean = math.fsum(values) / len(values)
    low, high = clustered_interval(values, groups)
    plain_low, plain_high = wilson_interval(mean, len(values))
    assert 0 <= low <= mean <= high <= 1
    assert low <= plain_low + 1e-12
    assert high >= plain_high - 1e-12


@pytest.mark.parametrize(
    ("values", "groups", "words"),
    [([], [], "got 0 values"), ([1.0], ["a", "b"], "got 1 values, 2 groups")],
)
def test_values_without_their_groups_are_refused(values, groups, words):
    with pytest.raises(ScoringError, match=words):
        clustered_interval(values, groups)


def test_a_score_that_is_no_share_is_refused():
    with pytest.raises(ScoringError, match=r"values must be in \[0, 1\]"):
        clustered_interval([1.0, 2.0, 0.0], ["a", "b", "b"])


def grouped_draws(generator, *, share, correlation, num_groups, size):
    """Groups whose shares are beta distributed: a sample's mean is `share`."""
    weight = 1 / correlation - 1
    chances = generator.beta(share * weight, (1 - share) * weight, num_groups)
    values = generator.random((num_groups, size)) < chances[:, None]
    groups = np.repeat(np.arange(num_groups), size)
    return values.ravel().astype(float).tolist(), groups.tolist()


@pytest.mark.parametrize(("share", "num_groups"), [(0.5, 30), (0.9, 60)])
def test_the_clustered_interval_covers_where_the_plain_one_does_not(share, num_groups):
    generator = np.random.default_rng(1)
    rounds, covered, plain = 600, 0, 0
    for _ in range(rounds):
        values, groups = grouped_draws(
            generator, share=share, correlation=0.4, num_groups=num_groups, size=5
        )
        low, high = clustered_interval(values, groups)
        covered += low <= share <= high
        low, high = wilson_interval(sum(values) / len(values), len(values))
        plain += low <= share <= high
    assert covered / rounds >= 0.93
    assert plain / rounds < 0.85


@pytest.mark.parametrize(("share", "n"), [(0.1, 50), (0.5, 30), (0.97, 200)])
def test_the_wilson_interval_covers_as_it_says(share, n):
    # Exact coverage: sum over all possible counts.
    covered = sum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k)
        for k in range(n + 1)
        if wilson_interval(k / n, n)[0] <= share <= wilson_interval(k / n, n)[1]
    )
    assert 0.92 < covered < 0.99
