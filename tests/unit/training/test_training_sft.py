import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from safemerge.config.stage import LoraSpec
from safemerge.errors import TrainingError
from safemerge.training.batch import IGNORED, EncodedSample, collate
from safemerge.training.lora import attach_lora
from safemerge.training.sft import learning_rate, make_optimizer, target_loss, train

ROWS = [
    EncodedSample((1, 9, 30, 31, 40, 41, 50, 51, 2), 6),
    EncodedSample((1, 9, 30, 31, 60, 70, 2), 5),
    EncodedSample((1, 9, 30, 31, 40, 80, 81, 82, 83, 84, 2), 7),
]


# --- the loss ---------------------------------------------------------------------------


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = target_loss(model, batch)
    torch.autograd.backward(loss)
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}


def test_a_shared_beginning_changes_neither_loss_nor_gradients(exact, tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    batch = collate(ROWS)
    assert batch.num_shared == 4
    loss, gradients = loss_and_gradients(model, batch)
    plain_loss, plain = loss_and_gradients(model, replace(batch, num_shared=0))
    assert loss.dtype == torch.float64
    assert abs(loss - plain_loss) < 1e-10
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def model(tiny_base):
    return AutoModelForCausalLM.from_pretrained(tiny_base)


def transformers_loss(model, batch):
    ids, mask = batch.input_ids, batch.attention_mask
    return model(input_ids=ids, attention_mask=mask, labels=batch.labels).loss


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[1:]])
def test_the_loss_is_transformers_own_on_the_same_labels(model, rows):
    batch = collate(rows)
    with torch.no_grad():
        torch.testing.assert_close(
            target_loss(model, batch), transformers_loss(model, batch), rtol=1e-5, atol=1e-6
        )


def test_the_loss_of_an_adapted_model_counts_the_adapter(tiny_base):
    base = AutoModelForCausalLM.from_pretrained(tiny_base)
    batch = collate(ROWS)
    with torch.no_grad():
        before = target_loss(base, batch)
        adapted = attach_lora(base, LoraSpec(rank=2, targets=["q_proj"]), where="toy")
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.5)
        after = target_loss(adapted, batch)
        expected = transformers_loss(adapted, batch)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-6)
    assert abs(after - before) > 1e-3


def test_a_batch_without_targets_has_no_loss_and_no_gradient(model):
    batch = collate([EncodedSample((1, 9, 30), 3), EncodedSample((1, 9, 31), 3)])
    loss, gradients = loss_and_gradients(model, batch)
    assert float(loss) == 0.0
    assert all(not gradient.any() for gradient in gradients.values())


# --- the steps --------------------------------------------------------------------------


class ToyModel(torch.nn.Module):
    """A bigram model in the shape that the training steps use: hidden states, output layer."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.nn.Parameter(torch.randn(20, 4, generator=generator))
        self.output = torch.nn.Linear(4, 20, bias=False)
        with torch.no_grad():
            self.output.weight.copy_(torch.randn(20, 4, generator=generator))

    def base_model(self, *, input_ids, attention_mask, use_cache):
        return SimpleNamespace(last_hidden_state=self.embedding[input_ids])

    def get_output_embeddings(self):
        return self.output


def stream(steps):
    """Batches that share no beginning, so that the toy model needs no cache."""
    return [
        collate(
            [
                EncodedSample((1 + step % 3, 7, 8 + step % 5, 3), 1),
                EncodedSample((5, 11 + step % 4, 2), 2),
            ]
        )
        for step in range(steps)
    ]


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def run(model, spec, batches, **fields):
    seen = []
    optimizer = fields.pop("optimizer", None) or make_optimizer(model, spec)
    train(model, optimizer, batches, spec, on_step=seen.append, **fields)
    return seen, optimizer


def test_the_learning_rate_warms_up_over_five_steps_then_falls_to_zero(finetune):
    spec = finetune(steps=20, learning_rate=2.0)
    # Peak x warm-up x what is left of the run, by hand.
    expected = {0: 2 * 0.2, 1: 2 * 0.4 * 0.95, 4: 2 * 0.8, 5: 2 * 0.75, 10: 1.0, 19: 0.1}
    for step, rate in expected.items():
        assert learning_rate(spec, step) == pytest.approx(rate, abs=1e-12)
    assert all(0 < learning_rate(spec, step) < 2.0 for step in range(20))
    assert learning_rate(spec, 20) == 0.0


def test_steps_are_those_of_a_plain_loop(finetune):
    spec = finetune(steps=7, learning_rate=0.3, weight_decay=0.1, max_grad_norm=0.5)
    model, plain = ToyModel(), ToyModel()
    seen, _ = run(model, spec, stream(7))

    optimizer = torch.optim.AdamW(plain.parameters(), lr=1.0, weight_decay=0.1)
    for step, batch in enumerate(stream(7)):
        losses = []
        for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
            for position in range(len(ids) - 1):
                if labels[position + 1] != IGNORED:
                    logits = plain.output(plain.embedding[ids[position]])
                    losses.append(-torch.log_softmax(logits, 0)[labels[position + 1]])
        loss = sum(losses) / len(losses)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in plain.parameters()))
        for parameter in plain.parameters():
            parameter.grad *= min(1.0, 0.5 / norm)
        optimizer.param_groups[0]["lr"] = 0.3 * min(1, (step + 1) / 5) * (1 - step / 7)
        optimizer.step()
        assert seen[step].step == step + 1
        assert seen[step].loss == pytest.approx(loss.item(), rel=1e-5)
        assert seen[step].grad_norm == pytest.approx(norm, rel=1e-5)
        assert seen[step].num_tokens == 7
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_resumed_run_ends_where_a_whole_one_does(finetune):
    spec = finetune(steps=6, learning_rate=0.3)
    whole, resumed = ToyModel(), ToyModel()
    all_steps, _ = run(whole, spec, stream(6))
    first, optimizer = run(resumed, spec, stream(2))
    rest, _ = run(resumed, spec, stream(6), optimizer=optimizer, first_step=2)
    assert first + rest == all_steps
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value)


def test_only_trainable_parameters_are_optimised_with_the_declared_decay(finetune):
    model = ToyModel()
    model.output.weight.requires_grad_(False)
    before = state(model)
    spec = finetune(steps=2, learning_rate=0.3, weight_decay=0.25)
    _, optimizer = run(model, spec, stream(2))
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(model.embedding)]
    assert group["weight_decay"] == 0.25
    assert torch.equal(model.output.weight, before["output.weight"])
    assert not torch.equal(model.embedding, before["embedding"])


def test_gradients_are_reduced_with_the_number_of_target_tokens(finetune):
    seen = []

    def reduce(gradients, num_targets):
        seen.append((len(gradients), num_targets))
        for gradient in gradients:
            gradient.zero_()

    model = ToyModel()
    before = state(model)
    metrics, _ = run(model, finetune(steps=2), stream(2), reduce_gradients=reduce)
    assert seen == [(2, 4), (2, 4)]
    assert [item.grad_norm for item in metrics] == [0.0, 0.0]
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_the_model_is_put_into_training_mode(finetune):
    model = ToyModel().eval()
    run(model, finetune(steps=1), stream(1))
    assert model.training


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_at_its_step(finetune, value):
    model, seen = ToyModel(), []

    def break_after_two(metrics):
        seen.append(metrics.step)
        if metrics.step == 2:
            with torch.no_grad():
                model.embedding.fill_(value)

    words = r"toy, step 3: the loss must be finite; got (nan|inf)\. Lower learning_rate"
    spec = finetune(steps=5)
    with pytest.raises(TrainingError, match=words):
        train(model, make_optimizer(model, spec), stream(5), spec, on_step=break_after_two)
    assert seen == [1, 2]
