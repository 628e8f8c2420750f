"""Warm starts: what a space can say of a recipe, and which recipes are refused."""

import pytest
from warm_start_driving import BOTH, UNIT, recipe, space, starting

from safemerge.config.recipe import MergeRecipe
from safemerge.search import start_plans, study_references
from safemerge.search.layer_mean import Span, group_span, layer_mean
from safemerge.search.warm_start import over_study, start_problems
from safemerge.testing.landscapes import landscape_study

LAYERS = [{"name": f"layer-{i}", "layers": str(i)} for i in range(4)]
EMBEDDINGS = {"name": "embeddings", "kind": "embeddings"}
HALVES = [{"name": "early", "layers": "0-1"}]


def plan_of(document, spaces=None, **changes):
    if spaces is not None:
        changes["spaces"] = spaces
    (plan,) = start_plans(landscape_study(**starting(document, **changes)))
    return plan


# --- What a space can say -----------------------------------------------------------------


def test_a_recipe_inside_the_ranges_is_sampled_and_no_reference():
    plan = plan_of(recipe())
    assert plan.point.params == {"method.weights.skill": 0.25, "method.weights.safety": 0.75}
    assert plan.reference is None
    assert plan.summary == (
        "start 'a': sampled first, in space 'sum': weights.skill 0.25, weights.safety 0.75"
    )


@pytest.mark.parametrize(
    ("varied", "given", "taken", "is_exact"),
    [
        (UNIT, 1.5, 1.0, False),
        (UNIT, -0.25, 0.0, False),
        ({"low": 0.0, "high": 1.0, "step": 0.25}, 0.3, 0.25, False),
        ({"low": 0.0, "high": 1.0, "step": 0.1}, 0.30000000000000004, 0.3, True),
        ({"low": 0.01, "high": 1.0, "log": True}, 0.0, 0.01, False),
        ({"choices": [0, 0.5, 1]}, 0.6, 0.5, False),
        ({"choices": [0, 0.5, 1]}, 1.0, 1, True),
    ],
)
def test_a_value_is_cut_to_the_range_or_moved_to_the_grid(varied, given, taken, is_exact):
    plan = plan_of(
        recipe(weights={"skill": given, "safety": 0.5}), [space({"method.weights.skill": varied})]
    )
    assert plan.point.params == {"method.weights.skill": taken}
    assert plan.point.exact is is_exact
    assert (plan.reference is None) is is_exact
    if not is_exact:
        assert plan.reference.label == "start a"
        assert plan.reference.recipe.method.weights["skill"] == given
        assert "no space expresses it, so it is a reference point as it is" in plan.summary


@pytest.mark.parametrize(
    "changes",
    [
        {"method_fields": {"lambda": 0.5}},
        {"dtype": "float32"},
        {"steps": [{"name": "pre_post", "alpha": 0.5}]},
    ],
)
def test_a_recipe_that_differs_in_what_a_space_holds_fixed_is_not_expressed(changes):
    plan = plan_of(recipe(**changes))
    assert not plan.point.exact
    assert plan.reference.recipe == MergeRecipe.model_validate(recipe(**changes))


def test_an_expert_that_the_recipe_leaves_out_has_weight_0():
    plan = plan_of(recipe(weights={"safety": 0.5}))
    assert plan.point.params == {"method.weights.skill": 0.0, "method.weights.safety": 0.5}
    assert plan.point.exact


def test_one_number_is_expressed_by_a_space_that_goes_by_layers_or_anchors():
    weights = {"skill": {"early": 0.1, "default": 0.9}, "safety": [0.5, 0.5]}
    vary = dict.fromkeys(
        [
            *("method.weights.skill.early", "method.weights.skill.default"),
            *("method.weights.safety.0", "method.weights.safety.1"),
        ],
        UNIT,
    )
    plan = plan_of(recipe(), [space(vary, weights, layer_groups=HALVES)])
    assert list(plan.point.params.values()) == [0.25, 0.25, 0.75, 0.75]
    assert plan.point.exact


BY_LAYER = {
    "skill": {"layer-0": 0.0, "layer-1": 0.2, "layer-2": 0.4, "layer-3": 0.6, "embeddings": 0.0},
    "safety": {f"layer-{i}": 1.0 for i in range(4)} | {"embeddings": 0.0},
}


def test_a_recipe_by_layer_is_a_reference_and_its_mean_over_layers_is_sampled():
    groups = [*LAYERS, EMBEDDINGS]
    plan = plan_of(recipe(weights=BY_LAYER, layer_groups=groups))
    assert plan.point.params == {
        "method.weights.skill": pytest.approx(0.3),
        "method.weights.safety": 1.0,  # the 0 of the embeddings does not count
    }
    assert plan.reference.recipe.layer_groups[0].name == "layer-0"
    assert plan.summary == (
        "start 'a': no space expresses it, so it is a reference point as it is; its nearest is "
        "sampled first, in space 'sum': weights.skill 0.3, weights.safety 1"
    )


def test_the_mean_goes_over_the_layers_that_a_group_or_an_anchor_of_the_space_holds_for():
    weights = {"skill": {"early": 0.5, "default": 0.5}, "safety": [0.5, 0.5, 0.5]}
    vary = dict.fromkeys(
        [
            *("method.weights.skill.early", "method.weights.skill.default"),
            *("method.weights.safety.0", "method.weights.safety.2"),
        ],
        UNIT,
    )
    by_layer = {**BY_LAYER, "safety": {**BY_LAYER["skill"]}}
    plan = plan_of(
        recipe(weights=by_layer, layer_groups=[*LAYERS, EMBEDDINGS]),
        [space(vary, weights, layer_groups=HALVES)],
    )
    assert list(plan.point.params.values()) == pytest.approx([0.1, 0.5, 0.0, 0.6])
    assert not plan.point.exact


def test_the_space_is_one_that_expresses_the_recipe_wherever_it_stands():
    narrow = space({"method.weights.skill": {"low": 0.4, "high": 1.0}}, name="narrow")
    other = space(BOTH, name="ties", method="ties")
    plan = plan_of(recipe(), [narrow, other, space(BOTH, name="wide")])
    assert (plan.point.space, plan.point.exact) == ("wide", True)


def test_a_recipe_without_steps_is_nearest_to_a_space_without_steps():
    stepped = space(BOTH, name="stepped") | {"steps": [{"name": "pre_post", "alpha": 0.5}]}
    plain = space({"method.weights.skill": {"low": 0.9, "high": 1.0}}, name="plain")
    plan = plan_of(recipe(), [stepped, plain])
    assert plan.point.space == "plain"


def test_a_start_that_is_a_reference_already_is_told_and_not_doubled():
    mean = recipe("linear", {"skill": 1.0, "safety": 1.0}, method_fields={"normalize": True})
    linear = space({"method.weights.skill": {"low": 0.0, "high": 0.5}}, method="linear")
    spec = landscape_study(**starting(mean, mean, spaces=[linear]))
    assert [item.label for item in study_references(spec)] == ["base", "skill", "safety", "mean"]
    first, second = start_plans(spec)
    assert "'a': the same candidate as reference point 'mean'; its nearest" in first.summary
    assert first.point is not None
    assert second.point is None
    assert second.summary.endswith("(as for start 'a', once)")


def test_what_is_no_coefficient_may_vary_too_and_must_be_among_the_choices():
    vary = {
        "dtype": {"choices": ["base", "float32"]},
        "method.normalize": {"choices": [True, False]},
        "method.density": {"low": 0.1, "high": 1.0},
    }
    ties = space(vary, {"skill": 0.25, "safety": 0.75}, method="ties")
    fields = {"normalize": False, "density": {"skill": 0.25, "safety": 0.5}}
    plan = plan_of(recipe("ties", dtype="float32", method_fields=fields), [ties])
    assert plan.point.params == {
        "dtype": "float32",
        "method.normalize": False,
        "method.density": 0.375,
    }
    fields["density"] = 0.5
    assert plan_of(recipe("ties", dtype="float32", method_fields=fields), [ties]).point.exact
    other = plan_of(recipe("ties", dtype="bfloat16", method_fields=fields), [ties])
    assert "dtype" not in other.point.params
    assert not other.point.exact


def test_a_group_of_the_same_name_over_other_layers_is_averaged():
    weights = {"skill": {"early": 0.5, "default": 0.5}, "safety": 0.75}
    vary = dict.fromkeys(["method.weights.skill.early", "method.weights.skill.default"], UNIT)
    mine = {"skill": {"early": 0.0, "default": 0.8}, "safety": 0.75}
    plan = plan_of(
        recipe(weights=mine, layer_groups=[{"name": "early", "layers": "0"}]),
        [space(vary, weights, layer_groups=HALVES)],
    )
    assert list(plan.point.params.values()) == pytest.approx([0.4, 0.8])
    assert not plan.point.exact


@pytest.mark.parametrize(
    ("groups", "number", "span", "expected"),
    [
        (HALVES, {"early": 0.0, "default": 1.0}, Span((0, 1, 2, 3)), 0.5),
        (HALVES, [0.0, 1.0], Span((0, 1, 2, 3)), 0.5),
        (HALVES, {"early": [0.0, 3.0], "default": 5.0}, Span((1,)), 1.0),
        (
            [{"name": "heads", "kind": "attention"}, {"name": "rest", "layers": "0-3"}],
            {"heads": 1.0, "rest": 0.0},
            Span((0, 1)),
            0.5,
        ),
        (
            [{"name": "heads", "kind": "attention"}, {"name": "rest", "layers": "0-3"}],
            {"heads": 1.0, "rest": 0.0},
            Span((0, 1), "attention"),
            1.0,
        ),
        ([EMBEDDINGS], {"embeddings": 7.0, "default": 1.0}, Span((), "embeddings"), 7.0),
        ([EMBEDDINGS], {"embeddings": 7.0, "default": 1.0}, Span((0, 1)), 1.0),
        ([EMBEDDINGS], {"embeddings": 3.0}, Span((0,)), 3.0),
    ],
)
def test_the_mean_over_layers_restated(groups, number, span, expected):
    document = recipe(weights={"skill": number, "safety": 1.0}, layer_groups=groups)
    groups = MergeRecipe.model_validate(document).layer_groups
    assert layer_mean(number, groups, span, num_layers=4) == pytest.approx(expected)


def test_default_spans_the_layers_that_no_group_fills():
    groups = MergeRecipe.model_validate(recipe(layer_groups=HALVES)).layer_groups
    assert group_span("early", groups, num_layers=4) == Span((0, 1))
    assert group_span("default", groups, num_layers=4) == Span((2, 3))


# --- A recipe that is not the study's -----------------------------------------------------


def test_every_problem_of_a_recipe_is_told_with_what_to_do():
    document = recipe("ties", {"skil": 0.5}, vocabulary="base")
    document["base"]["name"] = "other"
    document["experts"][0]["name"] = "skil"
    problems = start_problems(landscape_study(), MergeRecipe.model_validate(document))
    assert problems == [
        "base: must be the study's 'base'; got 'other'. Rename one.",
        "experts: must be among the study's; got 'skil'. Did you mean 'skill'?",
        "method: must be that of a space; got 'ties'. The spaces have task_arithmetic. Add a "
        "space with it.",
        "vocabulary: must be the study's 'refuse'; got 'base'. Change one.",
    ]


@pytest.mark.parametrize(("method", "seed"), [("task_arithmetic", 7), ("dare_linear", 3)])
def test_a_seed_that_draws_nothing_makes_no_other_candidate(method, seed):
    document = recipe(method, {"safety": 1.0}, seed=3)
    document["experts"] = document["experts"][1:]
    found = over_study(
        landscape_study(), MergeRecipe.model_validate(document), {}, where="recipe.yaml"
    )
    assert found.seed == seed
    assert [expert.name for expert in found.experts] == ["skill", "safety"]


def test_a_variant_of_an_expert_is_found_by_its_weights():
    document = landscape_study().resolved()
    document["experts"][1] = {"name": "safety", "align": "/nowhere/safety.yaml"}
    document["spaces"][0]["vary"]["experts.safety.booster.lambda"] = {"choices": [0, 5, 20]}
    spec = type(landscape_study()).model_validate(document)
    made = {
        ref.name: ref.resolved_to(f"/made/{ref.name}", fingerprint=ref.name)
        for ref in spec.all_checkpoints
    }
    spec = spec.with_checkpoints(made)
    given = MergeRecipe.model_validate(recipe())
    models = {"skill": made["skill"], "safety": made["safety--2"]}
    start = over_study(spec, given, models, where="recipe.yaml")
    started = starting(start.resolved())["started"]
    (plan,) = start_plans(type(spec).model_validate(spec.resolved() | {"started": started}))
    assert plan.point.params["experts.safety.booster.lambda"] == 5
    assert plan.point.exact
