import asyncio
import json

import pytest

from safemerge.config.recipe import MergeRecipe, TaskArithmetic
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Likelihood
from safemerge.errors import EngineError
from safemerge.optimize.on_ray import PairReplica, continuations, mean_cross_entropy
from safemerge.optimize.optimizer import UNSCORABLE, mean_recipe, parent_recipes
from safemerge.optimize.pairs import load_pairs
from safemerge.optimize.spec import OptimizeSpec


@pytest.fixture
def spec(tiny_base, tiny_experts, tmp_path):
    for name, answer in {"safety": "no, i do not", "expert": "yes"}.items():
        lines = [json.dumps({"q": f"{name} {'x' * i}", "a": answer}) for i in range(5)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

    def pairs(name):
        source = {"kind": "file", "path": str(tmp_path / f"{name}.jsonl")}
        return [{"source": source, "prompt": "{q}", "response": "{a}"}]

    return OptimizeSpec.model_validate(
        {
            "name": "toy",
            "base": {"name": "base", "path": str(tiny_base)},
            "experts": [{"name": n, "path": str(path)} for n, path in tiny_experts.items()],
            "safety": pairs("safety"),
            "expert": pairs("expert"),
            "optimizer": {"name": "cma_es"},
            "max_tokens": 64,
            "evaluator": {"engine": "transformers", "dtype": "float32", "max_model_len": 128},
        }
    )


@pytest.fixture
def replica(spec):
    replica = PairReplica(spec.model_dump_json(by_alias=True))
    yield replica
    replica.close_engine()


def losses_of(replica, recipe):
    return asyncio.run(replica.losses(recipe.model_dump_json(by_alias=True)))


def test_an_engine_scores_what_the_training_model_scores(replica, spec):
    import torch
    from transformers import AutoModelForCausalLM

    from safemerge.config.models import models_recipe
    from safemerge.merge.resident import ResidentCheckpoints
    from safemerge.optimize.coefficient_table import coefficient_table
    from safemerge.optimize.merged_model import MergedModel
    from safemerge.optimize.optimizer import Team, model_score

    resident = ResidentCheckpoints.open(models_recipe(spec.base, spec.experts))
    table = coefficient_table(spec, resident)
    model = AutoModelForCausalLM.from_pretrained(spec.base.path, dtype=torch.float32)
    merged = MergedModel(model, resident, table, where="toy")
    score = model_score(spec, merged, load_pairs(spec, ChatFormat(spec.base.path)), Team())
    recipes = [*parent_recipes(spec).values(), mean_recipe(spec)]
    for recipe, expected in zip(recipes, score(recipes), strict=True):
        assert losses_of(replica, recipe) == pytest.approx(expected, abs=1e-5)


def test_a_recipe_that_cannot_be_merged_loses(replica, spec):
    method = TaskArithmetic(name="task_arithmetic", weights={"math": 1e41})
    broken = MergeRecipe(base=spec.base, experts=spec.experts, method=method)
    assert losses_of(replica, broken) == UNSCORABLE
    assert losses_of(replica, mean_recipe(spec)) != UNSCORABLE


def test_scores_of_another_candidate_are_refused(replica, spec, monkeypatch):
    monkeypatch.setattr(
        replica._engine,
        "loglikelihoods",
        lambda asked: [Likelihood(a.sample_id, -1.0, 1, True, "stale") for a in asked],
    )
    with pytest.raises(EngineError, match=r"texts must be scored by candidate [0-9a-f]+; got"):
        losses_of(replica, mean_recipe(spec))
    assert replica._engine is None, "an engine that answers for another is rebuilt"


def test_every_answer_stands_after_its_prompt(spec, tiny_base):
    item = load_pairs(spec, ChatFormat(tiny_base)).safety
    for asked, row in zip(continuations(item), item.rows, strict=True):
        assert asked.context_ids + asked.continuation_ids == row.sample.ids
        assert len(asked.context_ids) == row.sample.num_prompt


def test_the_mean_is_of_tokens_first_then_of_rows(spec, tiny_base):
    item = load_pairs(spec, ChatFormat(tiny_base)).safety
    found = [Likelihood(str(i), -2.0 * (i + 1), i + 1, False, "c") for i in range(5)]
    assert mean_cross_entropy(item, found) == pytest.approx(2.0)
