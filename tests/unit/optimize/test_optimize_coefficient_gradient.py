import math

import pytest
import torch

from safemerge.errors import TrainingError
from safemerge.optimize.coefficient_gradient import GradientSearch
from safemerge.optimize.optimizer import Team

FAST = {"name": "gradient", "steps": 8, "batch_size": 4, "learning_rate": 0.05}


def searched(spec, opened, *, steps=None, team=None):
    table, merged, pairs = opened(spec)
    search = GradientSearch(spec, table, merged, pairs, team or Team())
    found = [search.step(step) for step in range(steps or search.num_steps)]
    return search, found


def test_steps_lower_the_objective(optimize, opened):
    spec = optimize(optimizer={**FAST, "steps": 30, "batch_size": 14, "learning_rate": 0.1})
    _, found = searched(spec, opened)
    first, last = (sum(step.loss for step in part) / 5 for part in (found[:5], found[-5:]))
    assert last < first - 1e-3
    assert found[0].loss == pytest.approx(found[0].safety_loss + 0.3 * found[0].expert_loss)


def test_coefficients_start_at_one_over_n_and_stay_within_their_ends(optimize, opened):
    spec = optimize(optimizer={**FAST, "learning_rate": 5.0})
    table, merged, pairs = opened(spec)
    search = GradientSearch(spec, table, merged, pairs, Team())
    assert search.values.unique().tolist() == [0.5]
    seen = []
    for step in range(4):
        search.step(step)
        seen.append(search.values.clone())
    assert {0.0, 1.0} <= set(torch.cat(seen).unique().tolist())
    assert torch.stack(seen).min() >= 0.0
    assert torch.stack(seen).max() <= 1.0


def test_micro_batches_give_the_same_step(optimize, opened):
    whole, _ = searched(optimize(optimizer=FAST), opened, steps=2)
    parts, _ = searched(optimize(optimizer={**FAST, "micro_batches": 3}), opened, steps=2)
    torch.testing.assert_close(parts.values, whole.values, rtol=0, atol=1e-5)


def test_several_workers_sum_to_what_one_computes(optimize, opened):
    spec = optimize(optimizer=FAST)
    alone, found = searched(spec, opened, steps=1)
    # Each worker's own part is kept, then the sum is handed to both, as an all-reduce does.
    parts = []
    for rank in range(2):
        table, merged, pairs = opened(spec)
        team = Team(rank, 2, lambda tensor: parts.append(tensor.clone()))
        search = GradientSearch(spec, table, merged, pairs, team)
        search.step(0)
    assert not torch.allclose(parts[0], parts[1])
    total = parts[0] + parts[1]
    assert len(total) == alone.values.numel() + 2
    assert total[-2:].tolist() == pytest.approx([found[0].safety_loss, found[0].expert_loss])
    assert float(total[:-2].norm()) == pytest.approx(found[0].grad_norm, rel=1e-4)


def test_an_interrupted_search_goes_on_bit_for_bit(optimize, opened):
    spec = optimize(optimizer=FAST)
    whole, _ = searched(spec, opened)
    first, _ = searched(spec, opened, steps=3)
    table, merged, pairs = opened(spec)
    second = GradientSearch(spec, table, merged, pairs, Team())
    second.load_state_dict(first.state_dict())
    for step in range(3, second.num_steps):
        second.step(step)
    assert torch.equal(second.values, whole.values)
    assert second.recipe() == whole.recipe()


def test_expert_data_alone_leaves_the_safety_data_unread(optimize, opened):
    _, (step,) = searched(optimize(optimizer=FAST, objective="expert"), opened, steps=1)
    assert step.safety_loss is None
    assert step.loss == step.expert_loss
    other = optimize(optimizer=FAST, objective="expert", alpha=0.9)
    assert searched(other, opened, steps=1)[1][0].loss == step.loss


def test_entropy_goes_down_without_answers(optimize, opened):
    fast = {**FAST, "steps": 20, "batch_size": 14, "learning_rate": 0.1}
    _, found = searched(optimize(optimizer=fast, objective="entropy"), opened)
    assert all(0.0 < step.expert_loss < math.log(512) for step in found)
    assert found[-1].loss < found[0].loss - 1e-4


def test_a_loss_that_is_not_finite_stops_before_the_step(optimize, opened, monkeypatch):
    spec = optimize(optimizer=FAST)
    table, merged, pairs = opened(spec)
    search = GradientSearch(spec, table, merged, pairs, Team())
    before = search.values.clone()
    with torch.no_grad():
        next(iter(merged.model.lm_head.parameters())).fill_(math.nan)
    monkeypatch.setattr(merged, "set_coefficients", lambda values: None)
    with pytest.raises(TrainingError, match=r"toy, step 1: the loss must be finite; got nan"):
        search.step(0)
    assert torch.equal(search.values, before)


def test_groups_that_no_expert_changes_are_left_at_zero(optimize, opened, tiny_adapter):
    experts = [{"name": "lora", "path": str(tiny_adapter)}]
    spec = optimize(experts=experts, optimizer={**FAST, "start": 0.5})
    search, _ = searched(spec, opened, steps=2)
    weights = search.recipe().method.weights["lora"]
    assert weights["embeddings"] == weights["default"] == 0.0
    assert 0.4 < weights["layer-0"] < 0.6
    assert 0.5 not in (weights["layer-0"], weights["layer-1"])
