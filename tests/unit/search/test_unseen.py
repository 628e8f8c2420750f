"""Grids are covered: no recipe is sampled twice, and a finished grid ends the search."""

import pytest
from search_driving import FAST, answer, finish, optuna_states

from safemerge.config.grid import grid_size
from safemerge.search import Drawn, Failure, is_covered
from safemerge.search.unseen import unseen
from safemerge.testing.landscapes import SMOOTH, landscape_study

SKILL, SAFETY = "method.weights.skill", "method.weights.safety"


def space(name="sum", **vary):
    paths = {"skill": SKILL, "safety": SAFETY}
    return {
        "name": name,
        "method": {"name": "task_arithmetic", "weights": {"skill": 0.5, "safety": 0.5}},
        "vary": {paths[key]: values for key, values in vary.items()},
    }


def steps(step, low=0.0, high=1.0):
    return {"low": low, "high": high, "step": step}


GRIDS = {
    "steps": ([space(skill=steps(0.5), safety=steps(0.5))], 9),
    "a step that does not end on high": ([space(skill=steps(0.4), safety=steps(0.3))], 12),
    "choices": ([space(skill={"choices": [0.1, 0.4, 0.9]}, safety={"choices": [0.0, 1.0]})], 6),
    "several spaces": (
        [space("one", skill=steps(0.25)), space("two", safety={"choices": [0.1, 0.2, 0.3]})],
        8,
    ),
}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "nsga3", "random"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_as_large_as_the_budget_is_covered(begin, grid, sampler):
    spaces, size = GRIDS[grid]
    study = begin(**{**FAST, "sampler": {"name": sampler}}, spaces=spaces, num_trials=size)
    assert grid_size(study.spec) == size
    records = finish(study)
    assert len({record.candidate for record in records}) == len(records) == size
    assert study.done
    assert study.covered


def test_a_finished_grid_ends_the_search_within_its_budget(begin):
    study = begin(**FAST, spaces=[space(skill=steps(0.5))], num_trials=40)
    seen = []
    while not study.done:
        proposal = study.ask()
        seen.append(proposal.params[SKILL])
        study.tell(proposal.number, answer(SMOOTH, proposal))
    assert sorted(seen) == [0.0, 0.5, 1.0]
    assert study.covered
    assert study.num_sampled == 3
    assert study.ask() is None


def test_what_is_in_flight_is_not_drawn_again(begin):
    study = begin(**FAST, spaces=[space(skill=steps(0.25))], num_trials=9)
    asked = [study.ask() for _ in range(5)]
    assert len({item.candidate for item in asked}) == 5
    assert study.ask() is None
    assert not study.done, "five trials are in flight"


def test_equal_recipes_of_two_spaces_are_sampled_once(begin):
    spaces = [space("one", skill=steps(0.5)), space("two", skill=steps(0.25))]
    study = begin(**FAST, spaces=spaces, num_trials=20)
    records = finish(study)
    assert len({record.candidate for record in records}) == len(records) == 5
    assert study.done


def test_a_crashed_recipe_of_a_grid_is_tried_again_and_costs_one(begin):
    study = begin(**FAST, spaces=[space(skill=steps(0.5))], num_trials=3)
    first = study.ask()
    study.tell(first.number, Failure("the replica died"))
    records = finish(study)
    assert [record.candidate for record in records].count(first.candidate) == 1
    assert len({record.candidate for record in records}) == 3


def test_a_resumed_search_draws_what_is_left_of_the_grid(begin):
    changes = {**FAST, "spaces": [space(skill=steps(0.125))], "num_trials": 9}
    study = begin(**changes)
    first = finish(study, limit=4)
    study.close()
    rest = finish(begin(**changes))
    assert len({record.candidate for record in [*first, *rest]}) == 9


def test_rounding_errors_of_steps_make_no_new_recipe(begin):
    study = begin(**FAST, spaces=[space(skill=steps(0.1))], num_trials=11)
    found = sorted(record.params[SKILL] for record in finish(study))
    assert found == pytest.approx([0.1 * place for place in range(11)])


def test_repeats_leave_no_trial_open_in_optuna(begin):
    study = begin(**FAST, spaces=[space(skill=steps(0.5))], num_trials=3)
    finish(study)
    assert {state.name for state in optuna_states(study)} <= {"COMPLETE", "FAIL"}


def test_a_continuum_is_never_covered():
    spec = landscape_study(**FAST)
    assert grid_size(spec) is None
    assert not is_covered(spec, Drawn.of([]))
    assert unseen(spec, Drawn.of([])) is not None


def test_of_a_finite_and_an_endless_space_the_endless_one_goes_on(begin):
    spaces = [
        space("one", skill={"choices": [0.5]}),
        space("two", skill={"low": 0.0, "high": 1.0}),
    ]
    study = begin(**FAST, spaces=spaces, num_trials=12)
    records = finish(study)
    assert len({record.candidate for record in records}) == len(records) == 12
