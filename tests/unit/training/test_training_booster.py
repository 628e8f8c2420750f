"""The three backends against the definition, alone, in parts and on two ranks."""

import copy
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from safemerge.training.batch import TokenBatch
from safemerge.training.booster import BACKENDS, BoosterInputs
from safemerge.training.gradient import logical_batch
from safemerge.training.sft import target_loss

NAMES = list(BACKENDS)


def inputs_of(model, alignment, harmful, *, parts=1, strength=5.0, step=0.1, **fields):
    split = partial(logical_batch, num_parts=parts, device="cpu")
    return BoosterInputs(
        model=model,
        parameters=[p for p in model.parameters() if p.requires_grad],
        alignment=split(alignment),
        harmful=split(harmful),
        regularizer_strength=strength,
        perturbation_step=step,
        loss=target_loss,
        **fields,
    )


def run(name, inputs):
    outcome = BACKENDS[name](inputs)
    return outcome, [p.grad.clone() for p in inputs.parameters]


def by_definition(model, alignment, harmful, strength, step):
    """The update from torch.autograd.grad alone, and what a step measures."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradient(batch):
        loss = target_loss(model, batch)
        return loss.detach(), torch.autograd.grad(loss, parameters)

    f, of_f = gradient(alignment)
    h, at_w = gradient(harmful)
    norm = sum(float(g.square().sum()) for g in at_w) ** 0.5
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter, g in zip(parameters, at_w, strict=True):
            parameter -= step * g / (norm + 1e-7)
    h_there, there = gradient(harmful)
    with torch.no_grad():
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    total = [a + strength * (b - c) for a, b, c in zip(of_f, at_w, there, strict=True)]
    apart = sum(float((b - c).square().sum()) for b, c in zip(at_w, there, strict=True)) ** 0.5
    return [float(f), float(h), float(h_there), norm, apart], total


def assert_all_close(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("shared", [0, 3])
def test_every_backend_gives_the_update_of_the_definition(
    exact, adapted, rows, name, parts, shared
):
    model = adapted()
    alignment, harmful = rows(4, seed=1, shared=shared), rows(6, seed=2, shared=shared)
    expected, update = by_definition(model, alignment, harmful, 5.0, 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    outcome, got = run(name, inputs_of(model, alignment, harmful, parts=parts))
    assert_all_close(got, update)
    assert list(map(float, outcome)) == pytest.approx(expected, abs=1e-10)
    assert expected[4] > 0.01 * expected[3], "the two harmful gradients must differ to show it"
    for value, parameter in zip(before, model.parameters(), strict=True):
        assert torch.equal(value, parameter)


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_bit_for_bit_and_gradients_stay_float32_on_a_half_base(
    adapted, rows, name
):
    model = adapted(torch.bfloat16)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    _, got = run(name, inputs_of(model, rows(3, seed=1), rows(5, seed=2)))
    assert {gradient.dtype for gradient in got} == {torch.float32}
    for n, parameter in model.named_parameters():
        assert torch.equal(parameter, before[n])


@pytest.mark.parametrize("name", ["three_pass", "in_place"])
def test_without_a_perturbation_the_update_is_the_alignments_gradient_exactly(adapted, rows, name):
    model = adapted(torch.float32)
    alignment, harmful = rows(4, seed=1), rows(6, seed=2)
    _, plain = run(name, inputs_of(model, alignment, harmful, strength=0.0))
    outcome, got = run(name, inputs_of(model, alignment, harmful, step=0.0))
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
    assert outcome.difference_norm == 0
    model.zero_grad()
    torch.autograd.backward(target_loss(model, alignment))
    assert all(
        torch.equal(p.grad, g)
        for p, g in zip((p for p in model.parameters() if p.requires_grad), got, strict=True)
    )


def test_without_a_perturbation_grouped_is_the_alignments_gradient_to_rounding(
    exact, adapted, rows
):
    model = adapted()
    alignment, harmful = rows(4, seed=1), rows(6, seed=2)
    _, plain = run("three_pass", inputs_of(model, alignment, harmful, strength=0.0))
    outcome, got = run("grouped", inputs_of(model, alignment, harmful, step=0.0))
    assert_all_close(got, plain, 1e-12)
    assert outcome.difference_norm < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_the_norm_is_global_and_not_per_tensor(exact, adapted, rows, name):
    """A perturbation by each tensor's own norm is another algorithm, and far off."""
    model = adapted()
    alignment, harmful = rows(4, seed=1), rows(6, seed=2)
    _, got = run(name, inputs_of(model, alignment, harmful))
    shrunk = [p for p in model.parameters() if p.requires_grad][:1]
    _, other = run("three_pass", replace(inputs_of(model, alignment, harmful), parameters=shrunk))
    assert (got[0] - other[0]).norm() > 0.01 * got[0].norm()


@pytest.mark.parametrize("name", NAMES)
def test_no_gradient_leaves_the_weights_where_they_are(adapted, rows, name):
    """A harmful gradient of zero gives no direction, and no division by zero."""
    model = adapted(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    outcome, got = run(name, inputs_of(model, rows(3, seed=1), rows(3, seed=2)))
    assert outcome.harmful_norm == 0
    assert outcome.difference_norm == 0
    assert all(bool(g.isfinite().all()) for g in got)


# --- two ranks --------------------------------------------------------------------------


def rank_rows(batch, rank, world_size):
    def part(tensor):
        return tensor[rank::world_size]

    return TokenBatch(
        part(batch.input_ids), part(batch.attention_mask), part(batch.labels), batch.num_shared
    )


def worker(rank, world_size, port, payload, folder):
    """One rank: the given backends on its rows; answers updates and all-reduce counts."""
    model, alignment, harmful = copy.deepcopy(payload)  # what is sent is shared memory
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    answers = {}
    for name in NAMES:
        calls = []

        def all_reduce(tensor, calls=calls):
            calls.append(tensor.numel())
            torch.distributed.all_reduce(tensor)

        inputs = inputs_of(
            model,
            rank_rows(alignment, rank, world_size),
            rank_rows(harmful, rank, world_size),
            all_reduce=all_reduce,
        )
        outcome, got = run(name, inputs)
        answers[name] = (list(map(float, outcome)), got, calls)
    torch.distributed.destroy_process_group()
    torch.save(answers, folder / f"{rank}.pt")


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_ranks_give_the_joined_batchs_update_with_two_all_reduces(adapted, rows, tmp_path):
    model = adapted(torch.float32)
    alignment, harmful = rows(5, seed=1), rows(6, seed=2)
    expected, update = by_definition(model, alignment, harmful, 5.0, 0.1)
    torch.multiprocessing.spawn(
        worker, args=(2, free_port(), (model, alignment, harmful), tmp_path), nprocs=2
    )
    answers = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    scale = max(float(g.abs().max()) for g in update)
    for name in NAMES:
        for rank in range(2):
            measured, got, calls = answers[rank][name]
            assert measured == pytest.approx(expected, rel=1e-4, abs=1e-5)
            assert_all_close(got, update, 1e-4 * scale)
            assert len(calls) == (3 if name == "three_pass" else 2)
        pairs = zip(answers[0][name][1], answers[1][name][1], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
