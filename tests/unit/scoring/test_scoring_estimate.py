import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.config.metric import TASK_METRICS
from safemerge.errors import ScoringError
from safemerge.inference import clustered_interval, wilson_interval
from safemerge.records import MetricEstimate, Score
from safemerge.scoring.estimate import estimate, mean_estimate, suite_estimates


def part(value, low, high, *, n=10, unscored=0, direction="maximize"):
    return MetricEstimate(
        metric="m", value=value, low=low, high=high, n=n, unscored=unscored, direction=direction
    )


def scored(*values, unscored=0):
    scores = [Score(sample_id=str(i), values={"accuracy": v}) for i, v in enumerate(values)]
    return scores + [Score(sample_id=f"u{i}", unscored="no response") for i in range(unscored)]


def test_an_estimate_is_the_mean_of_the_scored_with_its_interval():
    found = estimate("s.accuracy", scored(1, 0, 0, 0), key="accuracy", direction="maximize")
    assert (found.metric, found.value, found.n, found.unscored) == ("s.accuracy", 0.25, 4, 0)
    assert (found.low, found.high) == wilson_interval(0.25, 4)


def test_unscored_samples_are_counted_apart_and_never_as_zero():
    scores = scored(1, 1, unscored=3)
    found = estimate("s.accuracy", scores, key="accuracy", direction="maximize")
    assert (found.value, found.n, found.unscored) == (1.0, 2, 3)
    assert (found.low, found.high) == wilson_interval(1.0, 2)


def test_samples_that_share_a_prompt_widen_the_interval():
    scores = scored(1, 1, 1, 1, 0, 0, 1, 1, unscored=2)
    groups = {score.sample_id: int(score.sample_id[-1]) // 2 for score in scores}
    told = {"key": "accuracy", "direction": "maximize"}
    plain, grouped = estimate("m", scores, **told), estimate("m", scores, **told, groups=groups)
    assert (grouped.value, grouped.n, grouped.unscored) == (0.75, 8, 2)
    assert grouped.low < plain.low
    assert grouped.high > plain.high
    values = [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0]
    assert (grouped.low, grouped.high) == clustered_interval(values, [0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("unscored", [0, 4])
def test_nothing_scored_has_no_value_and_no_interval(unscored):
    scores = scored(unscored=unscored)
    found = estimate("s.accuracy", scores, key="accuracy", direction="maximize")
    assert (found.value, found.low, found.high) == (None, None, None)
    assert (found.n, found.unscored) == (0, unscored)


def test_a_suite_gives_every_metric_of_its_task_with_its_direction():
    for rows in TASK_METRICS.values():
        values = {row.name: index / len(rows) for index, row in enumerate(rows)}
        found = suite_estimates("x", rows, [Score(sample_id="1", values=values)])
        assert [(item.metric, item.direction) for item in found] == [
            (f"x.{row.name}", row.direction) for row in rows
        ]
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
