import pytest
import torch

from safemerge.errors import CheckpointMismatchError
from safemerge.merge.stream import merged_tensors
from safemerge.optimize.coefficient_table import coefficient_recipe
from safemerge.optimize.merged_model import MergedModel
from safemerge.optimize.objective import row_cross_entropies, row_entropies


def some_values(table, *, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(table.shape, dtype=torch.float64, generator=generator)


def total_loss(merged, pairs, loss):
    """The paper's objective over all rows, with gradient."""
    means = []
    for item in pairs.sets:
        ((batch, _),) = item.chunks(rows_at_once=100)
        means.append(loss(merged.model, batch).mean())
    return means[0] + 0.3 * means[1]


class Wrapped(torch.nn.Module):
    """A loss as a module, so that autograd can go through weights given from outside."""

    def __init__(self, merged, pairs, loss):
        super().__init__()
        self.inner, self._rest = merged.model, (merged, pairs, loss)

    def forward(self):
        merged, pairs, loss = self._rest
        return total_loss(merged, pairs, loss)


def gradient_through_weights(merged, table, pairs, values, loss):
    resident = merged._resident
    values = values.clone().requires_grad_()
    weights = {}
    for name in table.names:
        base = resident.base.tensor(name).double()
        moved = [resident.checkpoints[expert].tensor(name).double() for expert in table.experts]
        column = table.column_by_name[name]
        weights[f"inner.{name}"] = base + sum(
            values[row, column] * (other - base) for row, other in enumerate(moved)
        )
    total = torch.func.functional_call(Wrapped(merged, pairs, loss), weights, ())
    (gradient,) = torch.autograd.grad(total, values)
    return gradient


@pytest.mark.parametrize("loss", [row_cross_entropies, row_entropies])
@pytest.mark.parametrize("coefficients", ["layer", "model"])
def test_the_hooks_gradient_is_autograds_through_the_merged_weights(
    exact, optimize, opened, coefficients, loss
):
    spec = optimize(optimizer={"name": "gradient", "coefficients": coefficients})
    table, merged, pairs = opened(spec, dtype=torch.float64)
    values = some_values(table)
    expected = gradient_through_weights(merged, table, pairs, values, loss)

    merged.set_coefficients(values)
    with merged.collected_gradient() as collected:
        total_loss(merged, pairs, loss).backward()

    assert collected.shape == ((2, 4) if coefficients == "layer" else (2, 1))
    assert expected.abs().min() > 1e-6
    torch.testing.assert_close(collected, expected, rtol=1e-9, atol=1e-12)


def test_the_hooks_gradient_is_the_slope_of_the_loss(exact, optimize, opened):
    spec = optimize()
    table, merged, pairs = opened(spec, dtype=torch.float64)
    values, step = some_values(table), 1e-5
    merged.set_coefficients(values)
    with merged.collected_gradient() as collected:
        total_loss(merged, pairs, row_cross_entropies).backward()
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            ends = []
            for sign in (1.0, -1.0):
                moved = values.clone()
                moved[row, column] += sign * step
                merged.set_coefficients(moved)
                with torch.no_grad():
                    ends.append(float(total_loss(merged, pairs, row_cross_entropies)))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope == pytest.approx(float(collected[row, column]), rel=1e-5, abs=1e-9)


def test_gradients_of_several_backward_passes_add_up(optimize, opened):
    table, merged, pairs = opened(optimize())
    merged.set_coefficients(some_values(table))
    with merged.collected_gradient() as once:
        total_loss(merged, pairs, row_cross_entropies).backward()
    with merged.collected_gradient() as twice:
        total_loss(merged, pairs, row_cross_entropies).backward()
        total_loss(merged, pairs, row_cross_entropies).backward()
    torch.testing.assert_close(twice, 2 * once)


def test_no_more_than_one_parameters_gradient_is_alive(optimize, opened):
    table, merged, pairs = opened(optimize())
    merged.set_coefficients(some_values(table))
    parameters, alive = list(merged.model.parameters()), []
    counting = [
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in parameters))
        )
        for parameter in parameters
    ]
    with merged.collected_gradient():
        total_loss(merged, pairs, row_cross_entropies).backward()
    for hook in counting:
        hook.remove()
    assert len(alive) == len(parameters)
    assert set(alive) == {1}
    assert all(parameter.grad is None for parameter in parameters)


def test_after_the_block_gradients_are_torchs_own_again(optimize, opened):
    _, merged, pairs = opened(optimize())
    with merged.collected_gradient():
        pass
    total_loss(merged, pairs, row_cross_entropies).backward()
    assert all(parameter.grad is not None for parameter in merged.model.parameters())


def test_coefficients_and_their_recipe_give_the_same_weights(optimize, opened):
    spec = optimize()
    table, merged, _ = opened(spec)
    values = some_values(table)
    recipe = coefficient_recipe(spec, table, values)
    expected = dict(merged_tensors(recipe, merged._resident.checkpoints))
    base = merged._resident.base
    merged.set_coefficients(values)
    state = merged.model.state_dict()
    assert set(expected) == set(table.names)
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-6, atol=1e-7)
        assert not torch.equal(tensor, base.tensor(name))

    merged.load(recipe)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    merged.set_coefficients(torch.zeros_like(values))
    assert all(torch.equal(state[name], base.tensor(name)) for name in table.names)


def test_tensors_that_no_expert_changes_need_no_gradient(optimize, opened, tiny_adapter):
    spec = optimize(experts=[{"name": "lora", "path": str(tiny_adapter)}])
    table, merged, _ = opened(spec)
    trained = {name for name, p in merged.model.named_parameters() if p.requires_grad}
    assert trained == set(table.changed["lora"])
    assert all(any(kind in name for kind in ("q_proj", "v_proj", "down_proj")) for name in trained)


def test_a_model_without_a_tensor_of_the_base_is_refused(optimize, opened, tiny_base):
    table, merged, _ = opened(optimize())
    with pytest.raises(
        CheckpointMismatchError,
        match=r"toy: the model must have every tensor of the base; got none for 'model\.embed",
    ):
        MergedModel(torch.nn.Linear(2, 2), merged._resident, table, where="toy")
