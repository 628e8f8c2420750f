"""Vaccine's gradient against a reading of its formula that shares no code with it."""

from dataclasses import replace

import pytest
import torch

from safemerge.errors import ConfigError
from safemerge.training.gradient import logical_batch, zero_gradients
from safemerge.training.sft import target_loss
from safemerge.training.vaccine import accumulate_vaccine, attention_modules


def gradient(model, batch, *, parts=1, **fields):
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = zero_gradients(parameters)
    split = logical_batch(batch, num_parts=parts, device="cpu")
    loss = accumulate_vaccine(model, split, loss=target_loss, **fields)
    return float(loss), gradients


def transformers_loss(model, batch, shifts):
    """Plain loss of the whole model with a leaf added to every attention module's output."""
    layers = model.get_base_model().model.layers

    def add(shift):
        return lambda _m, _i, output: (output[0] + shift, *output[1:])

    handles = [
        layer.self_attn.register_forward_hook(add(shift))
        for layer, shift in zip(layers, shifts, strict=True)
    ]
    loss = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
    ).loss
    for handle in handles:
        handle.remove()
    return loss


def by_formula(model, batch, rho, *, per_row=False):
    shape = (*batch.input_ids.shape, 64)
    zeros = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    found = torch.autograd.grad(transformers_loss(model, batch, zeros), zeros)
    g = torch.stack(found)
    norm = g.square().sum(dim=(0, 2, 3), keepdim=True).sqrt() if per_row else g.norm()
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = transformers_loss(model, batch, list(rho * g / (norm + 1e-7)))
    return loss.detach().item(), torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_the_gradient_is_that_of_the_formula(exact, adapted, rows, per_row, parts):
    model, batch = adapted(), rows(4, seed=1)
    assert batch.num_shared, "rows that share a beginning must still shift their own"
    expected_loss, expected = by_formula(model, batch, 2.0, per_row=per_row)
    loss, got = gradient(model, batch, parts=parts, rho=2.0, per_row=per_row)
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    plain_loss, plain = by_formula(model, batch, 0.0)
    assert loss > plain_loss + 1e-3, "the perturbation raises the loss"
    assert any((a - b).norm() > 1e-3 * b.norm() for a, b in zip(got, plain, strict=True))


def test_the_perturbation_raises_the_loss_as_its_slope_says(exact, adapted, rows):
    """Finite differences: to first order the loss grows by rho times the gradient's norm."""
    model, batch = adapted(), rows(3, seed=4)
    zeros = [
        torch.zeros((*batch.input_ids.shape, 64), dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    ]
    loss = transformers_loss(model, batch, zeros)
    slope = torch.stack(torch.autograd.grad(loss, zeros)).norm()
    risen, _ = gradient(model, batch, rho=1e-4)
    assert (risen - loss.item()) / 1e-4 == pytest.approx(float(slope), rel=1e-2)


def test_layers_below_the_first_adapter_are_perturbed_too(exact, adapted, rows):
    model, batch = adapted(first_layer=1), rows(3, seed=4)
    expected_loss, expected = by_formula(model, batch, 1.0)
    loss, got = gradient(model, batch, rho=1.0)
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_ranks_take_one_length_over_all_of_them(exact, adapted, rows):
    """Two ranks by hand: each scales its own gradient with the sums of both."""
    model, batch = adapted(), rows(4, seed=1)
    expected_loss, expected = by_formula(model, batch, 2.0)
    sent, parts = [], logical_batch(batch, num_parts=2, device="cpu").parts
    total = torch.zeros(2, dtype=torch.float64)

    def only_send(sums):
        sent.append(sums.clone())

    def everyone(sums):
        sums.copy_(total)

    for part in parts:
        gradient(model, part, rho=2.0, all_reduce=only_send)
    total += sum(sent)
    found = [gradient(model, part, rho=2.0, all_reduce=everyone) for part in parts]
    weights = [logical_batch(p, num_parts=1, device="cpu").num_targets for p in parts]
    shares = [weight / sum(weights) for weight in weights]
    loss = sum(share * value for share, (value, _) in zip(shares, found, strict=True))
    assert loss == pytest.approx(expected_loss, abs=1e-10)
    for index, value in enumerate(expected):
        got = sum(share * each[index] for share, (_, each) in zip(shares, found, strict=True))
        torch.testing.assert_close(got, value, rtol=0, atol=1e-10)


def test_without_a_perturbation_the_gradient_is_the_plain_one(exact, adapted, rows):
    model, batch = adapted(), rows(3, seed=4)
    loss = target_loss(model, replace(batch, num_shared=0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(loss, parameters)
    for a, b in zip(gradient(model, batch, rho=0.0)[1], expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_model_without_attention_is_refused():
    words = r"toy: vaccine needs attention modules named self_attn, attn, attention; got"
    with pytest.raises(ConfigError, match=words):
        attention_modules(torch.nn.Linear(2, 2), where="toy")
