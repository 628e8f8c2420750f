import optuna
import pytest
from optuna.trial import FixedTrial

from safemerge.config.recipe import Linear, Ties
from safemerge.errors import ConfigError
from safemerge.search.space import (
    optuna_distributions,
    optuna_params,
    recipe_at,
    reference_recipes,
    space_by_name,
    suggest,
)
from safemerge.testing.landscapes import landscape_study, weights_of

TIES = {
    "name": "trimmed",
    "method": {"name": "ties", "weights": {"skill": 1.0, "safety": 1.0}, "density": 0.5},
    "vary": {
        "method.density": {"low": 0.1, "high": 0.95, "step": 0.2},
        "method.lambda": {"low": 0.01, "high": 2.0, "log": True},
        "method.weights.skill": {"choices": [0, 0.5, 1]},
        "dtype": {"choices": ["base", "float32"]},
    },
}


@pytest.fixture
def two_spaces():
    first = landscape_study().resolved()["spaces"][0]
    return landscape_study(spaces=[first, TIES])


def test_a_single_space_is_drawn_without_a_choice_of_space():
    spec = landscape_study()
    trial = FixedTrial({"sum/method.weights.skill": 0.25, "sum/method.weights.safety": 0.75})
    space, params, recipe = suggest(trial, spec)
    assert space == "sum"
    assert params == {"method.weights.skill": 0.25, "method.weights.safety": 0.75}
    assert weights_of(recipe) == (0.25, 0.75)
    assert recipe.seed == spec.seed
    assert recipe.base == spec.base


def test_with_several_spaces_the_choice_comes_first_and_names_stay_apart(two_spaces):
    values = {
        "space": "trimmed",
        "trimmed/method.density": 0.3,
        "trimmed/method.lambda": 0.5,
        "trimmed/method.weights.skill": 1,
        "trimmed/dtype": "float32",
    }
    trial = FixedTrial(values)
    space, params, recipe = suggest(trial, two_spaces)
    assert list(trial.params) == list(values)
    assert space == "trimmed"
    assert isinstance(recipe.method, Ties)
    assert (recipe.method.density, recipe.method.lambda_, recipe.dtype) == (0.3, 0.5, "float32")
    assert params["method.weights.skill"] == 1


def test_what_is_drawn_has_the_declared_distributions(two_spaces):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(30):
        trial = study.ask()
        space, params, _ = suggest(trial, two_spaces)
        declared = space_by_name(two_spaces, space)
        seen.add(space)
        frozen = study.get_trials()[trial.number]
        assert frozen.params == optuna_params(two_spaces, declared, params)
        assert frozen.distributions == optuna_distributions(two_spaces, declared)
    assert seen == {"sum", "trimmed"}


def test_a_grid_ends_below_a_high_end_that_it_does_not_meet(two_spaces):
    density = optuna_distributions(two_spaces, space_by_name(two_spaces, "trimmed"))[
        "trimmed/method.density"
    ]
    assert (density.low, density.high, density.step) == (0.1, 0.9, 0.2)


def test_every_drawn_value_of_a_grid_is_in_the_range(two_spaces):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = set()
    for _ in range(60):
        _, params, _ = suggest(study.ask(), two_spaces)
        drawn.add(round(params.get("method.density", 0.1), 9))
    assert drawn == {0.1, 0.3, 0.5, 0.7, 0.9}


def test_the_same_values_give_the_same_candidate_and_others_another():
    spec = landscape_study()
    space = spec.spaces[0]
    first, same, other = (
        recipe_at(spec, space, {"method.weights.skill": value}).digest for value in (1, 1.0, 0.5)
    )
    assert first == same != other


def test_an_illegal_value_is_told_with_space_and_place():
    spec = landscape_study()
    with pytest.raises(
        ConfigError, match=r"space 'sum'.*method\.weights\.skill: must be a number"
    ):
        recipe_at(spec, spec.spaces[0], {"method.weights.skill": "much"})
    with pytest.raises(ConfigError, match=r"space 'sum'.*no such path .*; got 'x\.y'"):
        recipe_at(spec, spec.spaces[0], {"x.y": 1})


def test_an_unknown_space_is_told_with_the_known_ones(two_spaces):
    with pytest.raises(ConfigError, match=r"no such space; got 'som'\. Known: sum, trimmed"):
        space_by_name(two_spaces, "som")


def test_the_references_are_every_parent_alone_and_the_plain_mean():
    spec = landscape_study()
    references = reference_recipes(spec)
    assert [label for label, _ in references] == ["base", "skill", "safety", "mean"]
    for label, recipe in references[:3]:
        assert isinstance(recipe.method, Linear)
        assert recipe.method.weights == {label: 1.0}
    mean = references[3].recipe.method
    assert mean.weights == {"skill": 1.0, "safety": 1.0}
    assert mean.normalize
    assert len({recipe.digest for _, recipe in references}) == 4


def test_the_mean_of_a_single_expert_is_that_expert_listed_once():
    spec = landscape_study(
        experts=[{"name": "skill", "path": "/s"}],
        spaces=[
            {
                "name": "only",
                "method": {"name": "task_arithmetic", "weights": {"skill": 1.0}},
                "vary": {"method.lambda": {"low": 0.0, "high": 1.0}},
            }
        ],
    )
    assert [label for label, _ in reference_recipes(spec)] == ["base", "skill"]


def test_the_mean_leaves_out_a_model_that_no_space_merges():
    spec = landscape_study(
        experts=[{"name": name, "path": f"/{name}"} for name in ("skill", "safety", "harmful")]
    )
    references = dict(reference_recipes(spec))
    assert "harmful" in references
    assert references["mean"].method.weights == {"skill": 1.0, "safety": 1.0}


@pytest.fixture
def hardened():
    """A study that varies lambda of an expert, with its variants trained."""
    document = landscape_study().resolved()
    document["experts"][1] = {"name": "safety", "align": "/nowhere/safety.yaml"}
    document["spaces"][0]["vary"]["experts.safety.booster.lambda"] = {"choices": [0, 5, 20]}
    spec = type(landscape_study()).model_validate(document)
    digests = {ref.name: ref.name for ref in spec.all_checkpoints} | {"safety--2": "safety"}
    return spec.with_checkpoints(
        {
            ref.name: ref.resolved_to(f"/made/{ref.name}", fingerprint=digests[ref.name])
            for ref in spec.all_checkpoints
        }
    )


def test_a_drawn_setting_puts_its_variant_in_the_experts_place(hardened):
    weights = {"sum/method.weights.skill": 0.25, "sum/method.weights.safety": 0.75}
    recipes = {}
    for value in (0, 20):
        trial = FixedTrial({**weights, "sum/experts.safety.booster.lambda": value})
        _, params, recipe = suggest(trial, hardened)
        assert params["experts.safety.booster.lambda"] == value
        assert weights_of(recipe) == (0.25, 0.75)
        recipes[value] = recipe
    assert [recipes[value].experts[1].name for value in (0, 20)] == ["safety", "safety"]
    assert [recipes[value].experts[1].digest for value in (0, 20)] == ["safety--1", "safety--3"]
    assert recipes[0].digest != recipes[20].digest


def test_every_variant_is_a_reference_unless_it_is_the_expert_itself(hardened):
    references = {item.label: item.recipe for item in reference_recipes(hardened)}
    assert list(references) == [
        *("base", "skill", "safety", "mean"),
        *("safety[booster.lambda=0]", "safety[booster.lambda=20]"),
    ]
    recipe = references["safety[booster.lambda=20]"]
    assert recipe.experts[1].digest == "safety--3"
    assert recipe.method.weights == {"safety": 1.0}


def test_a_value_that_was_not_trained_is_refused(hardened):
    params = {"experts.safety.booster.lambda": 7}
    with pytest.raises(ConfigError, match=r"expert 'safety' must be a variant .*'booster.lambda'"):
        recipe_at(hardened, hardened.spaces[0], params)
