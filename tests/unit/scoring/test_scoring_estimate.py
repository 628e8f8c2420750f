import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.config.suite import METRICS
from safemerge.errors import ScoringError
from safemerge.records import MetricEstimate, Score
from safemerge.scoring.estimate import (
    Z_95,
    estimate,
    mean_estimate,
    suite_estimates,
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


def part(value, low, high, *, n=10, unscored=0, direction="maximize"):
    return MetricEstimate(
        metric="m", value=value, low=low, high=high, n=n, unscored=unscored, direction=direction
    )


def scored(*values, unscored=0):
    scores = [Score(sample_id=str(i), values={"accuracy": v}) for i, v in enumerate(values)]
    return scores + [Score(sample_id=f"u{i}", unscored="no response") for i in range(unscored)]


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


def test_an_estimate_is_the_mean_of_the_scored_with_its_interval():
    found = estimate("s.accuracy", scored(1, 0, 0, 0), key="accuracy", direction="maximize")
    assert (found.metric, found.value, found.n, found.unscored) == ("s.accuracy", 0.25, 4, 0)
    assert (found.low, found.high) == wilson_interval(0.25, 4)


def test_unscored_samples_are_counted_apart_and_never_as_zero():
    scores = scored(1, 1, unscored=3)
    found = estimate("s.accuracy", scores, key="accuracy", direction="maximize")
    assert (found.value, found.n, found.unscored) == (1.0, 2, 3)
    assert (found.low, found.high) == wilson_interval(1.0, 2)


@pytest.mark.parametrize("unscored", [0, 4])
def test_nothing_scored_has_no_value_and_no_interval(unscored):
    scores = scored(unscored=unscored)
    found = estimate("s.accuracy", scores, key="accuracy", direction="maximize")
    assert (found.value, found.low, found.high) == (None, None, None)
    assert (found.n, found.unscored) == (0, unscored)


def test_a_suite_gives_every_metric_of_its_task_with_its_direction():
    for kind, metrics in METRICS.items():
        values = {key: index / len(metrics) for index, key in enumerate(metrics)}
        found = suite_estimates("x", kind, [Score(sample_id="1", values=values)])
        assert {item.metric: item.direction for item in found} == {
            f"x.{key}": direction for key, direction in metrics.items()
        }
        assert {item.metric: item.value for item in found} == {
            f"x.{key}": value for key, value in values.items()
        }


def test_a_mean_has_a_mover_interval():
    # Below: sqrt(0.3^2 + 0.4^2) / 2 = 0.25; above: sqrt(0.05^2 + 0.12^2) / 2 = 0.065.
    found = mean_estimate("skill", [part(0.5, 0.2, 0.55), part(0.7, 0.3, 0.82)])
    assert found.value == pytest.approx(0.6, abs=1e-15)
    assert found.low == pytest.approx(0.35, abs=1e-15)
    assert found.high == pytest.approx(0.665, abs=1e-15)


def test_a_mean_of_one_metric_is_that_metric():
    found = mean_estimate("skill", [part(0.5, 0.25, 0.75, n=7, unscored=1)])
    assert (found.value, found.low, found.high) == (0.5, 0.25, 0.75)
    assert (found.n, found.unscored, found.metric) == (7, 1, "skill")


def test_a_mean_counts_the_samples_of_all_its_parts():
    found = mean_estimate(
        "harm",
        [
            part(0.5, 0.4, 0.6, n=3, unscored=1, direction="minimize"),
            part(0.5, 0.4, 0.6, n=9, unscored=2, direction="minimize"),
        ],
    )
    assert (found.n, found.unscored, found.direction) == (12, 3, "minimize")


def test_a_mean_with_a_missing_part_has_no_value():
    found = mean_estimate("skill", [part(0.5, 0.2, 0.8), part(None, None, None, n=0, unscored=9)])
    assert (found.value, found.low, found.high) == (None, None, None)
    assert (found.n, found.unscored) == (10, 9)


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=5).map(
        lambda pairs: [(min(hits, n), n) for hits, n in pairs]
    )
)
def test_a_means_interval_holds_it_stays_within_shares_and_is_no_wider_than_the_widest(pairs):
    parts = [part(k / n, *wilson_interval(k / n, n), n=n) for k, n in pairs]
    found = mean_estimate("skill", parts)
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12
    assert found.high - found.value <= max(p.high - p.value for p in parts) + 1e-12


def test_metrics_that_improve_in_different_ways_are_not_averaged():
    parts = [part(0.5, 0.4, 0.6), part(0.5, 0.4, 0.6, direction="minimize")]
    words = r"aggregate 'skill': parts must share one direction; got \['maximize', 'minimize'\]"
    with pytest.raises(ScoringError, match=words):
        mean_estimate("skill", parts)


def test_a_mean_of_nothing_is_refused():
    with pytest.raises(ScoringError, match=r"aggregate 'skill': .*; got \[\]"):
        mean_estimate("skill", [])
