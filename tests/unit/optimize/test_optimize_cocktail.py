import math

import pytest

from safemerge.errors import TrainingError
from safemerge.optimize.cocktail import CocktailSearch, cocktail_weights
from safemerge.optimize.objective import PairLosses


def test_weights_are_the_softmax_of_minus_the_losses():
    weights = cocktail_weights({"a": 1.0, "b": 3.0}, temperature=2.0)
    share = 1 / (1 + math.exp(-1.0))
    assert weights == pytest.approx({"a": share, "b": 1 - share}, abs=1e-15)


def test_temperature_goes_from_the_best_model_to_the_plain_mean():
    losses = {"a": 1.0, "b": 1.5, "c": 900.0}
    assert cocktail_weights(losses, temperature=1e-3)["a"] == pytest.approx(1.0)
    hot = cocktail_weights(losses, temperature=1e9)
    assert list(hot.values()) == pytest.approx([1 / 3] * 3, abs=1e-6)


LOSSES = {
    "base": PairLosses(4.0, 8.0),
    "math": PairLosses(6.0, 2.0),
    "safety": PairLosses(1.0, 5.0),
}


def scored(recipes):
    """The losses of the parent that each recipe is."""
    names = [[n for n, weight in r.method.weights.items() if weight] for r in recipes]
    return [LOSSES[name] for (name,) in names]


def mixed(spec):
    search = CocktailSearch(spec, scored)
    steps = [search.step(step) for step in range(search.num_steps)]
    return search, steps


@pytest.mark.parametrize(
    ("objective", "include_base", "expected"),
    [
        ("safety+expert", False, {"math": 4.0, "safety": 3.0}),
        ("safety+expert", True, {"base": 6.0, "math": 4.0, "safety": 3.0}),
        ("expert", False, {"math": 2.0, "safety": 5.0}),
    ],
)
def test_each_model_is_weighted_by_its_loss_on_both_sets(
    optimize, objective, include_base, expected
):
    settings = {"name": "lm_cocktail", "temperature": 1.0, "include_base": include_base}
    search, steps = mixed(optimize(optimizer=settings, objective=objective))
    assert [step.loss for step in steps] == list(expected.values())
    method = search.recipe().method
    assert method.name == "linear"
    assert method.weights == cocktail_weights(expected, temperature=1.0)


def test_an_interrupted_cocktail_goes_on(optimize):
    spec = optimize(optimizer={"name": "lm_cocktail"})
    whole, _ = mixed(spec)
    first = CocktailSearch(spec, scored)
    first.step(0)
    second = CocktailSearch(spec, scored)
    second.load_state_dict(first.state_dict())
    second.step(1)
    assert second.recipe() == whole.recipe()


def test_a_model_without_a_finite_loss_is_an_error(optimize):
    spec = optimize(optimizer={"name": "lm_cocktail"})
    search = CocktailSearch(spec, lambda recipes: [PairLosses(math.inf, 1.0)])
    with pytest.raises(TrainingError, match=r"toy, step 1: the loss of 'math' must be finite"):
        search.step(0)
