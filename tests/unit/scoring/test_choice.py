import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.config.suite import Choice
from safemerge.data.sample import Sample
from safemerge.engines.engine import Likelihood
from safemerge.errors import ScoringError
from safemerge.scoring.choice import choice_values, choose, score_choices


def test_the_most_probable_ending_is_chosen_and_the_first_of_equal_ones():
    assert choose([-3.0, -1.0, -2.0]) == 1
    assert choose([-1.0, -1.0]) == 0
    assert choose([-math.inf, -5.0]) == 1


def test_long_endings_are_not_marked_down_when_normalised():
    logprobs, endings = [-4.0, -6.0], ["four", "twelve chars"]
    assert choose(logprobs, endings=endings) == 0
    assert choose(logprobs, endings=endings, normalize="characters") == 1


def test_a_question_is_right_or_wrong_and_has_a_probability():
    values = choice_values([math.log(0.1), math.log(0.3)], endings=["a", "b"], gold=0)
    assert values == {"accuracy": 0.0, "gold_probability": pytest.approx(0.25)}


@given(st.lists(st.floats(-700, 0), min_size=2, max_size=6))
def test_the_probabilities_of_all_endings_sum_to_one(logprobs):
    endings = ["x"] * len(logprobs)
    found = [choice_values(logprobs, endings=endings, gold=k) for k in range(len(logprobs))]
    assert sum(values["gold_probability"] for values in found) == pytest.approx(1.0)
    assert sum(values["accuracy"] for values in found) == 1.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: choose([-1.0]), "needs two or more log-probabilities"),
        (lambda: choose([-1.0, 0.5]), "of 0 or less; got"),
        (lambda: choose([-1.0, math.nan]), "of 0 or less; got"),
        (lambda: choose([-1.0, -2.0], normalize="characters"), "must have a text; got 0 for 2"),
        (
            lambda: choose([-1.0, -2.0], endings=["", "b"], normalize="characters"),
            "must have a text",
        ),
        (lambda: choice_values([-1.0, -2.0], endings=["a", "b"], gold=2), "got 2 of 2"),
        (
            lambda: choice_values([-math.inf, -math.inf], endings=["a", "b"], gold=0),
            "must be possible",
        ),
    ],
)
def test_log_probabilities_that_make_no_sense_are_refused(call, words):
    with pytest.raises(ScoringError, match=words):
        call()


SAMPLES = [
    Sample("q:0", "?", label="1", endings=("a", "b", "c")),
    Sample("q:1", "?", label="0", endings=("long one", "b")),
]


def likelihoods(*pairs):
    return [Likelihood(sample_id, value, 1, False, "digest") for sample_id, value in pairs]


@pytest.mark.parametrize(("normalize", "second"), [("none", 0.0), ("characters", 1.0)])
def test_each_question_takes_its_own_endings(normalize, second):
    found = likelihoods(("q:0", -3.0), ("q:0", -1.0), ("q:0", -2.0), ("q:1", -4.0), ("q:1", -1.0))
    task = Choice(kind="choice", endings="{endings}", normalize=normalize)
    scores = score_choices(task, SAMPLES, found)
    assert [score.sample_id for score in scores] == ["q:0", "q:1"]
    assert [score.values["accuracy"] for score in scores] == [1.0, second]


def test_a_missing_or_foreign_log_probability_is_refused():
    task = Choice(kind="choice", endings="{endings}")
    three = likelihoods(("q:0", -3.0), ("q:0", -1.0), ("q:0", -2.0))
    for found in (three, [*three, *likelihoods(("q:1", -1.0), ("q:0", -1.0))]):
        with pytest.raises(ScoringError, match="every ending must have one log-probability"):
            score_choices(task, SAMPLES, found)
