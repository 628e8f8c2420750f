import math

import pytest

from safemerge.config.metric import harness_metric
from safemerge.config.suite import LmEval
from safemerge.data.sample import Sample
from safemerge.data.suite import LoadedSuite
from safemerge.errors import ScoringError
from safemerge.inference import wilson_interval
from safemerge.reports.wording import estimate_text
from safemerge.scoring.estimate import mean_estimate
from safemerge.scoring.lm_eval_score import score_lm_eval

METRICS = {"acc": "maximize", "perplexity": "minimize"}
SUITE = LoadedSuite(
    "mood",
    LmEval(kind="lm_eval", task="t", metrics=METRICS),
    "search",
    tuple(Sample(f"t:{i}", f"text {i}") for i in range(4)),
)


class Questions:
    """Values by rule: ``acc`` is a mean, ``perplexity`` is not."""

    def __init__(self, rows):
        self.rows = rows

    def values(self, answers):
        assert answers == ["a", "b", "c", "d"]
        return self.rows

    def is_mean(self, metric):
        return metric == "acc"

    def aggregate(self, metric, values):
        assert metric == "perplexity"
        return math.exp(-sum(value for value, _ in values) / sum(words for _, words in values))


def score(accuracies, likelihoods=(-2.0, -4.0, -6.0, -8.0), **changes):
    rows = [
        {"acc": accuracy, "perplexity": (value, 2)}
        for accuracy, value in zip(accuracies, likelihoods, strict=True)
    ]
    named = changes.get("metrics", METRICS)
    metrics = [harness_metric(name, way) for name, way in named.items()]
    return score_lm_eval(SUITE, Questions(rows), ["a", "b", "c", "d"], metrics=metrics)


def test_a_mean_of_shares_has_scores_and_our_interval():
    scores, (accuracy, _) = score([1, 0, 1.0, True])
    assert [item.values for item in scores] == [{"acc": value} for value in (1.0, 0.0, 1.0, 1.0)]
    assert [item.sample_id for item in scores] == ["t:0", "t:1", "t:2", "t:3"]
    assert (accuracy.metric, accuracy.value, accuracy.n) == ("mood.acc", 0.75, 4)
    assert (accuracy.low, accuracy.high) == pytest.approx(wilson_interval(0.75, 4))


def test_another_aggregate_is_the_tasks_own_with_a_jackknife_interval():
    _, (_, perplexity) = score([1, 0, 1, 1])
    assert (perplexity.metric, perplexity.direction) == ("mood.perplexity", "minimize")
    assert perplexity.value == pytest.approx(math.exp(20 / 8))
    # A mean's jackknife is its standard error: of 1, 2, 3, 4 nats a word it is sqrt(5/3) / 2, and
    # Student's quantile at 3 degrees is 3.18245; the perplexity has it on the log scale.
    half = 3.18245 * math.sqrt(5 / 3) / 2
    assert (perplexity.low, perplexity.high) == pytest.approx(
        (math.exp(2.5 - half), math.exp(2.5 + half)), rel=1e-4
    )
    assert score([1, 0, 1, 1])[1][1] == perplexity, "the same answers have the same interval"


def test_a_mean_of_other_numbers_is_no_share():
    scores, (accuracy,) = score_lm_eval(
        SUITE,
        Counting([{"acc": value} for value in (5.0, 7.0, 9.0, 11.0)]),
        ["a", "b", "c", "d"],
        metrics=[harness_metric("acc", "maximize")],
    )
    assert scores == []
    assert accuracy.value == 8.0
    assert 0.0 < accuracy.low < 5.0 < 11.0 < accuracy.high < 16.0


class Counting(Questions):
    def aggregate(self, metric, values):
        return sum(values) / len(values)


def test_a_value_that_is_no_number_is_unscored_and_not_0():
    scores, (accuracy, _) = score([1, math.nan, 1, 0])
    assert scores[1].unscored == "the task's value is not a number"
    assert (accuracy.value, accuracy.n, accuracy.unscored) == (pytest.approx(2 / 3), 3, 1)


def test_what_the_task_does_not_value_and_what_overflows_is_an_error():
    with pytest.raises(ScoringError, match="'mood': the task must value f1 for each of 4 documen"):
        score([1, 0, 1, 1], metrics={"f1": "maximize"})
    with pytest.raises(
        ScoringError, match=r"mood\.perplexity: the value must be finite; got (nan|inf)"
    ):
        score([1, 0, 1, 1], likelihoods=(math.nan, -1.0, -1.0, -1.0))


def test_a_share_is_told_in_percent_and_a_perplexity_as_it_is():
    _, (accuracy, perplexity) = score([1, 0, 1, 1])
    assert (accuracy.unit, perplexity.unit) == ("share", "number")
    assert estimate_text(accuracy).startswith("75.0\u00a0% [")
    assert estimate_text(perplexity).startswith("12.18 [")
    assert mean_estimate("both", [accuracy, accuracy]).unit == "share"
    with_number = perplexity.model_copy(update={"direction": "maximize"})
    assert mean_estimate("both", [accuracy, with_number]).unit == "number"
