"""Rows laid end to end give the padded batch's loss and gradients."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.errors import ConfigError
from safemerge.training.adapter_slot import joint_losses, slot_copies
from safemerge.training.batch import IGNORED
from safemerge.training.gradient import zero_gradients
from safemerge.training.packing import joined, packed_hidden
from safemerge.training.sft import target_loss


def test_real_tokens_stand_in_order_and_a_shared_beginning_once(rows):
    batch = rows(4, seed=1, shared=3)
    packed = batch.packed
    assert batch.num_shared == 3
    assert len(packed.input_ids) == batch.num_tokens - 3 * 3
    for row, length in enumerate(batch.attention_mask.sum(dim=1).tolist()):
        tokens = packed.grid[row, :length]
        assert torch.equal(packed.input_ids[tokens], batch.input_ids[row, :length])
        assert torch.equal(packed.positions[tokens], torch.arange(length))
    flat = packed.grid.flatten()[packed.places]
    assert torch.equal(flat, torch.arange(len(packed.input_ids)))
    targets = batch.labels[:, 1:]
    assert torch.equal(packed.labels, targets[targets != IGNORED])


@pytest.mark.parametrize("shared", [0, 3])
@pytest.mark.parametrize("chunk", [None, 4])
def test_the_loss_and_its_gradient_are_the_padded_batchs(exact, adapted, rows, shared, chunk):
    model, batch = adapted(), rows(5, seed=1, shared=shared)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def taken(**way):
        gradients = zero_gradients(parameters)
        loss = target_loss(model, batch, **way)
        torch.autograd.backward(loss)
        return loss.detach(), gradients

    expected, of_padded = taken()
    got, of_packed = taken(packing=True, chunk=chunk)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    for a, b in zip(of_packed, of_padded, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert model.get_base_model().config._attn_implementation == "sdpa"


@pytest.mark.parametrize("shared", [(0, 0), (3, 0), (3, 3)])
def test_two_slots_in_one_packed_pass_are_two_padded_passes(exact, adapted, rows, shared):
    model = adapted()
    first, second = (rows(n, seed=n, shared=s) for n, s in zip((3, 5), shared, strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]
    slot = slot_copies(parameters)
    with torch.no_grad():
        for tensor in slot:
            tensor.mul_(1.5)

    def taken(**way):
        own, other = zero_gradients(parameters), zero_gradients(slot)
        losses = joint_losses(
            model, first, second, parameters=parameters, slot=slot, where="toy", **way
        )
        torch.autograd.backward(losses[0] + 2 * losses[1])
        return [loss.detach() for loss in losses], [*own, *other]

    losses, gradients = taken()
    packed_losses, packed_gradients = taken(packing=True, chunk=3)
    torch.testing.assert_close(packed_losses, losses, rtol=0, atol=1e-12)
    torch.testing.assert_close(packed_gradients, gradients, rtol=0, atol=1e-12)
    assert losses[0] == pytest.approx(float(target_loss(model, first)), abs=1e-12)


def test_batches_of_other_lengths_are_joined_behind_each_other(rows):
    first, second = rows(2, seed=1).packed, rows(3, seed=2).packed
    both = joined(first, second)
    assert len(both.grid) == 5
    assert torch.equal(both.input_ids, torch.cat([first.input_ids, second.input_ids]))
    flat = both.grid.flatten()[both.places]
    assert torch.equal(flat, torch.arange(len(both.input_ids)))
    assert [start for start, *_ in both.beginnings] == [0, len(first.input_ids)]


def test_attention_that_is_more_than_causal_is_refused(tiny_base, rows):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    packed = rows(2, seed=1).packed
    wide, narrow = packed.grid.shape[1], packed.grid.shape[1] - 1

    def windowed(window):
        def forward(**inputs):
            return model.base_model(**inputs, sliding_window=window)

        forward.config = model.config
        return forward

    assert packed_hidden(windowed(wide), packed).isfinite().all()
    with pytest.raises(ConfigError, match=rf"a sliding window of {narrow} tokens .* packing: fa"):
        packed_hidden(windowed(narrow), packed)
