"""A search that starts from recipes: they are sampled first, each once."""

import pytest
from search_driving import FAST, finish, stored
from warm_start_driving import BOTH, UNIT, recipe, space, starting

from safemerge.records import INTERRUPTED
from safemerge.search import Failure
from safemerge.testing.landscapes import SMOOTH

OUTSIDE = {"skill": 1.5, "safety": 0.5}


def test_a_warm_start_is_the_first_sampled_trial(begin):
    study = begin(**starting(recipe(), **FAST, num_trials=3))
    records = finish(study)
    assert len(records) == 3
    assert records[0].params == {"method.weights.skill": 0.25, "method.weights.safety": 0.75}
    assert [record.start for record in records] == ["a", None, None]
    assert records[0].candidate == study.spec.started[0].recipe.digest


def test_what_no_space_expresses_is_a_reference_and_its_nearest_comes_first(begin):
    changes = starting(recipe(weights=OUTSIDE), **FAST, num_trials=2)
    study = begin(**changes)
    records = finish(study)
    assert [(item.role, item.label, item.start) for item in records] == [
        ("reference", "start a", None),
        ("sampled", "trial 1", "a"),
        ("sampled", "trial 2", None),
    ]
    assert records[0].recipe["method"]["weights"] == OUTSIDE
    assert records[1].params == {"method.weights.skill": 1.0, "method.weights.safety": 0.5}


def test_what_a_recipe_says_nothing_of_is_left_to_the_sampler(begin):
    stepped = space({**BOTH, "steps.pre_post.alpha": UNIT})
    stepped["steps"] = [{"name": "pre_post", "alpha": 0.5}]
    study = begin(**starting(recipe(), **FAST, num_trials=1, spaces=[stepped]))
    reference, sampled = finish(study)
    assert reference.label == "start a"
    assert sampled.start == "a"
    assert sampled.params.pop("steps.pre_post.alpha") not in (0.0, 0.5)
    assert sampled.params == {"method.weights.skill": 0.25, "method.weights.safety": 0.75}


def test_with_several_spaces_a_start_is_sampled_in_the_one_that_has_its_method(begin):
    linear = space(BOTH, name="linear", method="linear")
    study = begin(**starting(recipe("linear"), **FAST, num_trials=1, spaces=[space(BOTH), linear]))
    (record,) = finish(study)
    assert (record.space, record.start) == ("linear", "a")


def test_a_resumed_search_does_not_sample_its_starts_again(begin):
    changes = starting(recipe(), recipe(weights=OUTSIDE), **FAST, num_trials=5)
    first = begin(**changes)
    finish(first, limit=3)
    first.close()
    second = begin(**changes)
    finish(second)
    assert [item.start for item in stored(second)] == [None, "a", "b", None, None, None]
    assert len({item.candidate for item in stored(second)}) == 6


def test_a_start_in_flight_is_proposed_again_under_its_name(begin):
    changes = starting(recipe(), **FAST, num_trials=2)
    first = begin(**changes)
    lost = first.ask()
    first.close()
    second = begin(**changes)
    again = second.ask()
    assert (again.candidate, again.start, again.number) == (lost.candidate, "a", 1)
    second.tell(again.number, SMOOTH.evaluate(again.recipe))
    finish(second)
    told = [(item.start, item.reason) for item in stored(second)]
    assert told == [("a", INTERRUPTED), ("a", None), (None, None)]


def test_a_start_that_crashed_is_tried_again_under_its_name(begin):
    study = begin(**starting(recipe(), **FAST, num_trials=1))
    first = study.ask()
    study.tell(first.number, Failure("engine died"))
    again = study.ask()
    assert (again.start, again.attempt, again.candidate) == ("a", 1, first.candidate)


@pytest.mark.parametrize("asked", [0, 1])
def test_a_start_survives_a_lost_optuna_storage_and_is_not_repeated(begin, asked):
    changes = starting(recipe(), **FAST, num_trials=2)
    first = begin(**changes)
    finish(first, limit=asked)
    first.close()
    (first.store.folder / "study.journal").unlink()
    second = begin(**changes)
    finish(second)
    assert [item.start for item in stored(second)] == ["a", None]


def test_a_start_whose_asking_was_killed_is_sampled_anew(begin):
    changes = starting(recipe(), **FAST, num_trials=2)
    first = begin(**changes)
    first._study.ask()  # Optuna knows of it, the study has given it no number yet.
    first.close()
    second = begin(**changes)
    assert second.ask().start == "a"
