import math

import pytest
import torch

from safemerge.errors import TrainingError
from safemerge.optimize.evolution import EvolutionSearch
from safemerge.optimize.objective import PairLosses

CMA = {"name": "cma_es", "coefficients": "model", "evaluations": 40}


def landscape(recipes):
    """Losses with their least weighted sum at weights 0.2 and 0.7, whatever alpha."""
    found = []
    for recipe in recipes:
        weights = recipe.method.weights
        found.append(PairLosses((weights["math"] - 0.2) ** 2, (weights["safety"] - 0.7) ** 2))
    return found


def search_of(spec, opened, score=landscape):
    table, _, _ = opened(spec)
    return EvolutionSearch(spec, table, score)


def run(search, first=0):
    return [search.step(step) for step in range(first, search.num_steps)]


def test_the_coefficients_of_a_known_landscape_are_found(optimize, opened):
    search = search_of(optimize(optimizer={**CMA, "evaluations": 240}), opened)
    found = run(search)
    weights = search.recipe().method.weights
    assert weights == pytest.approx({"math": 0.2, "safety": 0.7}, abs=1e-2)
    assert found[-1].loss < 1e-4
    assert [step.loss for step in found] == sorted((step.loss for step in found), reverse=True)
    assert found[-1].loss == pytest.approx(found[-1].safety_loss + 0.3 * found[-1].expert_loss)


@pytest.mark.parametrize(("evaluations", "population"), [(40, None), (12, None), (7, 3), (2, 6)])
def test_no_more_candidates_are_scored_than_declared(optimize, opened, evaluations, population):
    asked = []

    def counted(recipes):
        asked.append(len(recipes))
        return landscape(recipes)

    spec = optimize(optimizer={**CMA, "evaluations": evaluations, "population": population})
    run(search_of(spec, opened, counted))
    assert sum(asked) == evaluations
    assert max(asked) <= (population or 6)


def test_an_interrupted_search_goes_on_bit_for_bit(optimize, opened):
    spec = optimize(optimizer=CMA)
    whole = search_of(spec, opened)
    run(whole)
    first = search_of(spec, opened)
    first.step(0)
    first.step(1)
    second = search_of(spec, opened)
    second.load_state_dict(first.state_dict())
    run(second, first=2)
    assert second.recipe() == whole.recipe()


def test_layers_have_coefficients_of_their_own(optimize, opened):
    search = search_of(optimize(optimizer={**CMA, "coefficients": "layer"}), opened, many)
    run(search)
    weights = search.recipe().method.weights["math"]
    assert set(weights) == {"layer-0", "layer-1", "embeddings", "default"}
    assert len(set(weights.values())) == 4


def many(recipes):
    return [PairLosses(sum(r.method.weights["math"].values()), 0.0) for r in recipes]


def test_a_density_is_searched_with_the_weights(optimize, opened):
    def dense(recipes):
        return [PairLosses((r.method.density - 0.8) ** 2, 0.0) for r in recipes]

    settings = {**CMA, "method": "ties", "search_density": True, "evaluations": 120}
    search = search_of(optimize(optimizer=settings), opened, dense)
    run(search)
    method = search.recipe().method
    assert method.name == "ties"
    assert method.density == pytest.approx(0.8, abs=2e-2)


def test_a_declared_density_is_kept(optimize, opened):
    spec = optimize(optimizer={**CMA, "method": "dare_ties", "density": 0.3, "evaluations": 3})
    search = search_of(spec, opened)
    run(search)
    recipe = search.recipe()
    assert (recipe.method.density, recipe.seed) == (0.3, spec.seed)


@pytest.mark.parametrize("objective", ["safety+expert", "expert"])
def test_broken_candidates_lose(optimize, opened, objective):
    def partly(recipes):
        found = landscape(recipes)
        return [
            PairLosses(math.inf, math.inf) if r.method.weights["math"] > 0.5 else losses
            for r, losses in zip(recipes, found, strict=True)
        ]

    search = search_of(optimize(optimizer=CMA, objective=objective), opened, partly)
    run(search)
    assert search.recipe().method.weights["math"] <= 0.5


def test_a_generation_without_a_sound_candidate_is_an_error(optimize, opened):
    broken = PairLosses(math.inf, math.inf)
    search = search_of(optimize(optimizer=CMA), opened, lambda recipes: [broken] * len(recipes))
    with pytest.raises(TrainingError, match=r"toy, step 1: .*finite loss; got none of 6"):
        search.step(0)


def test_values_keep_their_place_in_the_table(optimize, opened, tiny_adapter):
    spec = optimize(
        experts=[{"name": "lora", "path": str(tiny_adapter)}],
        optimizer={**CMA, "coefficients": "layer", "evaluations": 4},
    )
    table, _, _ = opened(spec)
    asked = []

    def kept(recipes):
        asked.extend(recipe.method.weights["lora"] for recipe in recipes)
        return [PairLosses(1.0, 1.0)] * len(recipes)

    EvolutionSearch(spec, table, kept).step(0)
    assert table.active.tolist() == [[True, True, False, False]]
    assert torch.tensor([[w["embeddings"], w["default"]] for w in asked]).abs().max() == 0
    assert len({w["layer-0"] for w in asked}) == len(asked)
