import pytest
import torch

from safemerge.errors import ConfigError
from safemerge.training.entropy import target_entropy


def made(count, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(8, 30, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.normal_(generator=generator)
    hidden = torch.randn((count, 8), generator=generator, dtype=dtype).requires_grad_()
    return hidden, torch.randint(0, 30, (count,), generator=generator), head


def gradients(hidden, labels, head, chunk):
    loss = target_entropy(hidden, labels, head, chunk=chunk)
    return loss.detach(), torch.autograd.grad(3.0 * loss, [hidden, head.weight])


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_chunks_give_the_whole_losss_gradients(exact, chunk):
    expected, whole = gradients(*made(11), None)
    got, parts = gradients(*made(11), chunk)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13)


def test_a_frozen_output_layer_gets_no_gradient_and_measuring_keeps_none():
    hidden, labels, head = made(5, torch.float32)
    head.weight.requires_grad_(False)
    loss = target_entropy(hidden, labels, head, chunk=2)
    torch.autograd.backward(loss)
    assert head.weight.grad is None
    assert hidden.grad.abs().sum() > 0
    with torch.no_grad():
        assert not target_entropy(hidden, labels, head, chunk=2).requires_grad


def test_a_half_output_layer_is_rounded_as_without_chunks():
    made_half = made(9, torch.bfloat16)
    _, whole = gradients(*made_half, None)
    _, parts = gradients(*made_half, 4)
    assert {gradient.dtype for gradient in parts} == {torch.bfloat16}
    torch.testing.assert_close(parts, whole, rtol=0.05, atol=6e-3)


@pytest.mark.parametrize("chunk", [None, 4])
def test_without_targets_the_loss_is_zero_and_every_weight_has_a_gradient(chunk):
    loss, of = gradients(*made(0), chunk)
    assert loss == 0
    assert of[1].shape == (30, 8)
    assert of[1].abs().sum() == 0


def test_chunks_want_a_plain_output_layer():
    hidden, labels, _ = made(3)
    with pytest.raises(ConfigError, match=r"loss_chunk: .* without bias; got Linear\."):
        target_entropy(hidden, labels, torch.nn.Linear(8, 30), chunk=2)
