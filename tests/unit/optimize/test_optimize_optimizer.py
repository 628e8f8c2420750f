import json
import math

import pytest
import torch

from safemerge.optimize.coefficient_search import MEAN, RESULT, compared_recipes, make_search
from safemerge.optimize.objective import PairLosses
from safemerge.optimize.optimizer import (
    UNSCORABLE,
    OptimizeStep,
    Team,
    mean_recipe,
    model_score,
    parent_recipes,
)
from safemerge.training.log import LOG_FILE, MetricsLog

SEARCHES = {
    "lm_cocktail": ("CocktailSearch", "linear"),
    "gradient": ("GradientSearch", "task_arithmetic"),
    "cma_es": ("EvolutionSearch", "task_arithmetic"),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_optimiser_ends_in_a_recipe_that_scores_no_worse_than_the_mean(
    optimize, opened, name
):
    settings = {
        "gradient": {"steps": 25, "batch_size": 14, "learning_rate": 0.1},
        "cma_es": {"evaluations": 40},
        "lm_cocktail": {"temperature": 0.01, "include_base": True},
    }
    spec = optimize(optimizer={"name": name, **settings[name]})
    table, merged, pairs = opened(spec)
    score = model_score(spec, merged, pairs, Team())
    search = make_search(spec, table, merged, pairs, score=score, team=Team())
    for step in range(search.num_steps):
        search.step(step)
    kind, method = SEARCHES[name]
    assert type(search).__name__ == kind
    assert search.recipe().method.name == method
    result, mean = score([search.recipe(), mean_recipe(spec)])
    weights = (0.5, 0.5) if name == "lm_cocktail" else (1.0, 0.3)
    assert result.total(weights) < mean.total(weights)


def test_parents_are_themselves(optimize, opened):
    spec = optimize()
    _, merged, _ = opened(spec)
    for name, recipe in parent_recipes(spec).items():
        merged.load(recipe)
        stored = merged._resident.checkpoints[name]
        for tensor, value in merged.model.state_dict().items():
            if tensor in stored:
                torch.testing.assert_close(value, stored.tensor(tensor), rtol=1e-6, atol=1e-7)


def test_a_result_is_compared_with_base_experts_and_mean(optimize):
    spec = optimize()
    assert list(compared_recipes(spec, mean_recipe(spec))) == [
        "base", "math", "safety", MEAN, RESULT,
    ]  # fmt: skip
    alone = optimize(experts=spec.model_dump()["experts"][:1])
    assert list(compared_recipes(alone, mean_recipe(alone))) == ["base", "math", RESULT]


def test_candidates_shared_by_two_workers_score_as_by_one(optimize, opened):
    spec = optimize()
    recipes = list(parent_recipes(spec).values())
    _, merged, pairs = opened(spec)
    alone = model_score(spec, merged, pairs, Team())(recipes)
    parts = []
    for rank in range(2):
        team = Team(rank, 2, lambda table: parts.append(table.clone()))
        model_score(spec, merged, pairs, team)(recipes)
    assert (parts[0] == 0).all(dim=1).tolist() == [False, True, False]
    assert (parts[0] + parts[1]).tolist() == [list(found) for found in alone]


def test_a_candidate_with_broken_weights_is_unscorable(optimize, opened):
    spec = optimize()
    _, merged, pairs = opened(spec)
    score = model_score(spec, merged, pairs, Team())
    huge = mean_recipe(spec).model_dump()
    huge["method"] = {"name": "task_arithmetic", "weights": {"math": 1e41, "safety": 1.0}}
    broken = type(mean_recipe(spec)).model_validate(huge)
    assert score([broken]) == [UNSCORABLE]
    assert all(map(math.isfinite, score([mean_recipe(spec)])[0]))


def test_a_step_is_logged_and_told(tmp_path):
    step = OptimizeStep(3, 1.25, 1.0, 0.5, grad_norm=2.0, coefficients={"math": 0.4})
    log = MetricsLog(tmp_path)
    log.write(step)
    log.close()
    assert json.loads((tmp_path / LOG_FILE).read_text(encoding="utf-8")) == {
        "step": 3,
        "loss": 1.25,
        "safety_loss": 1.0,
        "expert_loss": 0.5,
        "grad_norm": 2.0,
        "coefficient/math": 0.4,
    }
    assert step.summary == "loss 1.250, safety 1.000, expert 0.500"
    assert OptimizeStep(1, 0.5).summary == "loss 0.500"
    assert PairLosses(1.0, 2.0)._asdict() == {"safety": 1.0, "expert": 2.0}
