import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.errors import ScoringError
from safemerge.scoring.choice import choice_values, choose


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
