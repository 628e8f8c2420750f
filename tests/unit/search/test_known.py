"""Reference points that the spaces express are known to the sampler, and cost nothing."""

import pytest
from optuna.trial import create_trial
from search_driving import FAST, finish
from warm_start_driving import BOTH, UNIT, recipe, space, starting

from safemerge.config.recipe import MergeRecipe
from safemerge.search.known import REFERENCE, expressions, num_expressions
from safemerge.search.noise import VARIANCES
from safemerge.search.space import reference_recipes
from safemerge.testing.landscapes import BROKEN, HARM, landscape_study

PARENTS = {**FAST, "references": True}
SKILL, SAFETY, LAMBDA = "method.weights.skill", "method.weights.safety", "method.lambda"


def known(study):
    trials = study._study.get_trials(deepcopy=False)
    return [trial for trial in trials if REFERENCE in trial.user_attrs]


def points(spec, label):
    found = next(item.recipe for item in reference_recipes(spec) if item.label == label)
    return [(point.space, point.params) for point in expressions(spec, found)]


@pytest.mark.parametrize(
    ("label", "skill", "safety"),
    [("base", 0.0, 0.0), ("skill", 1.0, 0.0), ("safety", 0.0, 1.0), ("mean", 0.5, 0.5)],
)
def test_parents_and_mean_are_points_of_task_arithmetic(label, skill, safety):
    spec = landscape_study(spaces=[space(BOTH)])
    assert points(spec, label) == [("sum", {SKILL: skill, SAFETY: safety})]


def test_a_parent_is_a_point_of_a_linear_space_too():
    spaces = [space(BOTH), space(BOTH, name="soup", method="linear")]
    spec = landscape_study(spaces=spaces)
    both = {SKILL: 1.0, SAFETY: 0.0}
    assert points(spec, "skill") == [("sum", both), ("soup", both)]
    assert points(spec, "mean")[1] == ("soup", {SKILL: 1.0, SAFETY: 1.0})
    assert [name for name, _ in points(spec, "base")] == ["sum"]
    assert num_expressions(spec) == 4 + 3


def test_a_space_out_of_reach_expresses_nothing():
    near = {"low": 0.4, "high": 0.9}
    spec = landscape_study(spaces=[space({SKILL: near, SAFETY: near})])
    assert [points(spec, label) for label in ("base", "skill")] == [[], []]
    assert points(spec, "mean") == [("sum", {SKILL: 0.5, SAFETY: 0.5})]


def test_a_grid_expresses_what_is_on_it():
    grid = {"low": 0.0, "high": 1.0, "step": 0.4}
    spec = landscape_study(spaces=[space({SKILL: grid, SAFETY: UNIT})])
    assert points(spec, "safety") == [("sum", {SKILL: 0.0, SAFETY: 1.0})]
    assert points(spec, "skill") == []


def test_the_base_is_a_point_wherever_lambda_reaches_0():
    ties = space({LAMBDA: {"low": 0.0, "high": 2.0}}, name="ties", method="ties", density=0.5)
    spec = landscape_study(spaces=[ties])
    assert points(spec, "base") == [("ties", {LAMBDA: 0.0})]
    assert points(spec, "skill") == []


def test_a_space_with_a_step_expresses_nothing():
    stepped = space(BOTH)
    stepped["steps"] = [{"name": "pre_post", "alpha": 0.5}]
    assert points(landscape_study(spaces=[stepped]), "skill") == []


def test_one_coefficient_is_the_same_at_every_depth():
    weights = {"skill": [0.5, 0.5, 0.5], "safety": 0.5}
    vary = {f"{SKILL}.{depth}": UNIT for depth in range(3)}
    spec = landscape_study(spaces=[space({**vary, SAFETY: UNIT}, weights=weights)])
    found = dict.fromkeys(vary, 1.0)
    assert points(spec, "skill") == [("sum", {**found, SAFETY: 0.0})]


def test_a_merge_by_layers_is_no_point():
    spec = landscape_study(spaces=[space(BOTH)])
    layered = recipe(weights={"skill": [0.1, 0.9], "safety": 0.5})
    assert expressions(spec, MergeRecipe.model_validate(layered)) == []


@pytest.mark.parametrize("sampler", ["tpe", "random", "bayesian"])
def test_the_sampler_is_told_of_them_beyond_the_budget(begin, sampler):
    study = begin(**{**PARENTS, "sampler": {"name": sampler}}, num_trials=3)
    records = finish(study)
    references = [record for record in records if record.role == "reference"]
    assert [record.label for record in references] == ["base", "skill", "safety", "mean"]
    assert [record.role for record in records].count("sampled") == study.num_sampled == 3
    for trial, record in zip(known(study), references, strict=True):
        assert trial.user_attrs[REFERENCE] == record.number
        assert trial.values == list(record.objectives.values())
        assert set(trial.user_attrs[VARIANCES]) == set(record.objectives)
    assert study.done


def test_a_resumed_search_knows_them_once(begin):
    first = begin(**PARENTS, num_trials=4)
    finish(first, limit=5)
    first.close()
    second = begin(**PARENTS, num_trials=4)
    assert second.rebuilt is None
    assert len(known(second)) == 4
    finish(second)
    assert second.num_sampled == 4


def test_a_run_from_before_learns_of_them_on_resume(begin):
    first = begin(**PARENTS, num_trials=4)
    finish(first, limit=5)
    first.close()
    (first.store.folder / "study.journal").unlink()
    second = begin(**PARENTS, num_trials=4)
    assert len(known(second)) == 4
    assert second.num_sampled == 1


def test_a_foreign_reference_is_not_believed(begin):
    first = begin(**PARENTS, num_trials=2)
    finish(first, limit=5)
    forged = known(first)[0]
    first._study.add_trial(
        create_trial(
            values=[1.0, 0.0],
            params=forged.params,
            distributions=forged.distributions,
            user_attrs=forged.user_attrs,
        )
    )
    first.close()
    second = begin(**PARENTS, num_trials=2)
    assert "reference point that is not of this run" in second.rebuilt
    assert len(known(second)) == 4


def test_a_warm_start_that_is_no_recipe_of_a_space_may_still_be_a_point(begin):
    """A linear recipe, where the space adds task vectors."""
    study = begin(**starting(recipe("linear"), **FAST, num_trials=1))
    finish(study)
    (trial,) = known(study)
    assert trial.params == {f"sum/{SKILL}": 0.25, f"sum/{SAFETY}": 0.75}


def test_a_broken_recipe_says_little_of_the_limits_that_were_not_measured(begin):
    changes = {"sampler": {"name": "bayesian"}, "constraints": [{"metric": HARM, "budget": 0.5}]}
    study = begin(**{**FAST, **changes}, num_trials=8)
    records = finish(study, BROKEN)
    broken = [record.result.broken is not None for record in records]
    assert 0 < sum(broken) < len(broken)
    optuna_study = study._study
    found = optuna_study.sampler._evaluations(optuna_study, optuna_study.get_trials())
    harm = found.variances[:, 3]
    assert [variance == 0.25 for variance in harm] == broken
