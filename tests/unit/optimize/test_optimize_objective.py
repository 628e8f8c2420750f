import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.optimize.objective import (
    PairLosses,
    loss_weights,
    row_cross_entropies,
    row_entropies,
    row_loss,
    whole_losses,
)
from safemerge.training.batch import collate


@pytest.fixture
def model(tiny_base):
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


def samples_of(pairs):
    return [row.sample for row in pairs.safety.rows]


@pytest.mark.parametrize("objective", ["safety+expert", "entropy"])
def test_each_rows_loss_is_its_own_whatever_stands_beside_it(optimize, opened, model, objective):
    _, _, pairs = opened(optimize())
    samples, loss = samples_of(pairs), row_loss(objective)
    together = loss(model, collate(samples))
    alone = torch.cat([loss(model, collate([sample])) for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert together.std() > 1e-4


def test_losses_are_those_of_the_definition(optimize, opened, model):
    _, _, pairs = opened(optimize())
    sample = samples_of(pairs)[0]
    with torch.no_grad():
        logits = model(torch.tensor([sample.ids])).logits[0]
    places = range(sample.num_prompt - 1, len(sample.ids) - 1)
    logarithms = logits.log_softmax(-1)
    cross_entropy = -sum(float(logarithms[p, sample.ids[p + 1]]) for p in places) / len(places)
    entropy = -sum(float((logarithms[p].exp() * logarithms[p]).sum()) for p in places)
    batch = collate([sample])
    assert float(row_cross_entropies(model, batch)) == pytest.approx(cross_entropy, rel=1e-5)
    assert float(row_entropies(model, batch)) == pytest.approx(entropy / len(places), rel=1e-5)
    assert 0.0 < float(row_entropies(model, batch)) <= math.log(512)


def test_whole_sets_are_the_same_for_any_chunks_and_workers(optimize, opened, model):
    _, _, pairs = opened(optimize())
    rows = [row_cross_entropies(model, collate([row.sample])) for row in pairs.safety.rows]
    settings = {"loss": row_cross_entropies, "rows_at_once": 3}
    whole = whole_losses(model, pairs, **settings)
    assert whole.safety == pytest.approx(float(torch.cat(rows).mean()), rel=1e-5)
    parts = []
    for rank in range(2):
        whole_losses(
            model, pairs, **settings, rank=rank, world_size=2,
            all_reduce=lambda both: parts.append(both.clone()),
        )  # fmt: skip
    assert (parts[0] + parts[1]).tolist() == pytest.approx(list(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "weights"),
    [("safety+expert", (1.0, 0.3)), ("expert", (0.0, 1.0)), ("entropy", (1.0, 0.3))],
)
def test_the_objective_weighs_both_sets(objective, weights):
    assert loss_weights(objective, 0.3) == weights
    assert PairLosses(2.0, 5.0).total(weights) == pytest.approx(
        2.0 * weights[0] + 5.0 * weights[1]
    )
