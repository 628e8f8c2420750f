import pytest
import torch

from safemerge.errors import ConfigError
from safemerge.training.adapter_slot import joint_losses, slot_copies
from safemerge.training.batch import EncodedSample, collate
from safemerge.training.sft import target_loss


@pytest.fixture
def model(exact, adapted):
    return adapted()


@pytest.fixture
def parameters(model):
    return [p for p in model.parameters() if p.requires_grad]


def moved(parameters):
    """A slot whose weights are others than the adapter's own."""
    slot = slot_copies(parameters)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for tensor in slot:
            tensor += torch.randn(tensor.shape, generator=generator) * 0.05
    return slot


@pytest.mark.parametrize(("first_shared", "second_shared"), [(0, 0), (3, 5), (3, 0)])
def test_each_batch_goes_through_its_own_weights(
    model, parameters, rows, first_shared, second_shared
):
    first = rows(2, seed=1, shared=first_shared)
    second = rows(5, seed=2, shared=second_shared)
    slot = moved(parameters)
    losses = joint_losses(model, first, second, parameters=parameters, slot=slot, where="toy")
    gradients = torch.autograd.grad(sum(losses), [*parameters, *slot])

    expected_first = target_loss(model, first)
    expected = list(torch.autograd.grad(expected_first, parameters))
    with torch.no_grad():
        for parameter, value in zip(parameters, slot, strict=True):
            parameter.copy_(value)
    expected_second = target_loss(model, second)
    expected += torch.autograd.grad(expected_second, parameters)

    assert abs(float((expected_first - expected_second).detach())) > 1e-3
    torch.testing.assert_close(losses, (expected_first, expected_second), rtol=0, atol=1e-10)
    for got, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=1e-10)


def test_the_model_is_as_before_afterwards(model, parameters, rows):
    batch = rows(2, seed=1)
    before = target_loss(model, batch)
    slot = moved(parameters)
    joint_losses(model, batch, batch, parameters=parameters, slot=slot, where="toy")
    assert torch.equal(target_loss(model, batch), before)


def test_rows_without_targets_have_no_loss(model, parameters, rows):
    empty = collate([EncodedSample((1, 2, 3), 3)] * 2)
    slot = slot_copies(parameters)
    first, second = joint_losses(
        model, empty, rows(2, seed=1), parameters=parameters, slot=slot, where="toy"
    )
    assert first.item() == 0.0
    assert second.item() > 0.0


def test_the_slot_is_a_copy(parameters):
    slot = slot_copies(parameters)
    before = [tensor.detach().clone() for tensor in slot]
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(slot, before, strict=True))
    assert all(tensor.is_leaf and tensor.requires_grad for tensor in slot)


def test_what_is_no_lora_of_a_linear_layer_is_refused(model, rows):
    model.get_base_model().model.norm.weight.requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    slot = slot_copies(parameters)
    batch = rows(2, seed=1)
    words = r"toy: booster\.backend grouped needs LoRA on linear layers alone; got 1 other"
    with pytest.raises(ConfigError, match=words):
        joint_losses(model, batch, batch, parameters=parameters, slot=slot, where="toy")
