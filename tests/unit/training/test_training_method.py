"""Declared stages as whole runs: trajectories, resumes, streams, refusals."""

import itertools
import math

import pytest
import torch

from safemerge.errors import ConfigError, TrainingError
from safemerge.training.batch import IGNORED, EncodedSample, Mixture
from safemerge.training.method import (
    PairedBatch,
    held_out_loss,
    make_method,
    method_batches,
)
from safemerge.training.sft import make_optimizer, target_loss, train

SET = {"source": {"kind": "file", "path": "/data/rows.jsonl"}, "response": "{answer}"}
HARMFUL = {"data": [SET], "batch_size": 3}


def samples(count, *, first):
    generator = torch.Generator().manual_seed(first)
    lengths = torch.randint(3, 10, (count,), generator=generator).tolist()
    return tuple(
        EncodedSample(
            (1, 5, first, *torch.randint(20, 400, (n,), generator=generator).tolist()), 3
        )
        for n in lengths
    )


def mixture(second=None, test=()):
    benign, refusals = samples(9, first=11), samples(7, first=12)
    return Mixture((benign, refusals), (0.5, 0.5), (9, 7), second, test)


HARM = Mixture((samples(8, first=13),), (1.0,), (8,))


@pytest.fixture
def fit(adapted):
    """Run a stage on a new model; return its trained tensors, its steps and its method."""

    def fit(spec, mixed, *, stop=None, state=None, dtype=torch.float32):
        model = adapted(dtype)
        optimizer = make_optimizer(model, spec)
        method = make_method(model, spec)
        parameters = [p for p in model.parameters() if p.requires_grad]
        first, seen = 0, []
        if state is not None:
            first, weights, moments, kept = state
            with torch.no_grad():
                for parameter, value in zip(parameters, weights, strict=True):
                    parameter.copy_(value)
            optimizer.load_state_dict(moments)
            method.load_state_dict(kept)
        stream = itertools.islice(method_batches(mixed, spec), stop)
        train(model, optimizer, stream, spec, first_step=first, method=method, on_step=seen.append)
        weights = [p.detach().clone() for p in parameters]
        return weights, seen, (len(seen), weights, optimizer.state_dict(), method.state_dict())

    return fit


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["in_place", "three_pass"])
def test_with_lambda_zero_the_trajectory_is_that_of_plain_alignment(fit, align, backend):
    common = {"steps": 6, "batch_size": 4, "learning_rate": 0.01, "weight_decay": 0.1}
    plain, steps, _ = fit(align(**common), mixture())
    booster = align(
        **common, method="booster", harmful=HARMFUL, booster={"lambda": 0.0, "backend": backend}
    )
    weights, seen, _ = fit(booster, mixture(HARM))
    assert equal(weights, plain)
    assert [(s.loss, s.grad_norm) for s in seen] == [(s.loss, s.grad_norm) for s in steps]
    other, _, _ = fit(align(**common, method="booster", harmful=HARMFUL), mixture(HARM))
    assert not equal(other, plain)


def method_of(name, align, finetune):
    common = {"steps": 9, "batch_size": 4, "learning_rate": 0.01}
    lisa = {"data": [SET], "alignment_steps": 2, "user_steps": 2, "warmup": 0.0}
    return {
        "booster": align(
            **common,
            method="booster",
            harmful=HARMFUL,
            micro_batches=2,
            schedule="constant",
            booster={"adaptive": {}, "phases": [{"steps": 2}, {"steps": 7, "alpha": 0.2}]},
        ),
        "vaccine": align(**common, method="vaccine"),
        "booster+vaccine": align(**common, method="booster+vaccine", harmful=HARMFUL),
        "repnoise": align(**common, method="repnoise", harmful=HARMFUL),
        "lisa": finetune(**common, method="lisa", lisa=lisa),
    }[name]


@pytest.mark.parametrize("name", ["booster", "vaccine", "booster+vaccine", "repnoise", "lisa"])
def test_a_resumed_stage_ends_where_a_whole_one_does(fit, align, finetune, name):
    spec = method_of(name, align, finetune)
    mixed = mixture(None if name == "vaccine" else HARM)
    whole, steps, _ = fit(spec, mixed)
    _, before, state = fit(spec, mixed, stop=5)
    resumed, after, _ = fit(spec, mixed, state=state)
    assert before + after == steps
    assert equal(resumed, whole)
    assert all(math.isfinite(value) for step in steps for value in step.known().values())


def test_a_step_of_booster_tells_what_it_measured(fit, align):
    spec = align(steps=2, batch_size=4, method="booster", harmful=HARMFUL)
    _, seen, _ = fit(spec, mixture(HARM))
    told = set(seen[0].known())
    assert told == {
        "step", "loss", "grad_norm", "num_tokens", "harmful_loss", "perturbed_loss",
        "harmful_grad_norm", "difference_ratio", "regularizer_strength", "penalty",
    }  # fmt: skip
    assert seen[0].penalty == 5.0 * (seen[0].harmful_loss - seen[0].perturbed_loss)
    assert seen[0].perturbed_loss < seen[0].harmful_loss, "a harmful step lowers h"
    assert seen[0].difference_ratio > 0


def test_a_measured_lambda_trains_as_the_same_lambda_declared(fit, align):
    common = {"steps": 7, "batch_size": 4, "learning_rate": 0.01, "harmful": HARMFUL}
    plain = {"lambda": 0.0, "alpha": 0.05}
    _, measured, _ = fit(
        align(**common, method="booster", booster=plain), mixture(HARM), dtype=torch.float64
    )
    falls = [step.harmful_loss - step.perturbed_loss for step in measured[:4]]
    strength = 0.3 / (sum(falls) / 4)
    calibrated, seen, _ = fit(
        align(
            **common, method="booster",
            booster={"alpha": 0.05, "calibrate": {"penalty_nats": 0.3, "plain_steps": 4}},
        ),
        mixture(HARM),
        dtype=torch.float64,
    )  # fmt: skip
    phases = [{"steps": 4, "lambda": 0.0}, {"steps": 3, "lambda": strength}]
    declared, _, _ = fit(
        align(**common, method="booster", booster={"alpha": 0.05, "phases": phases}),
        mixture(HARM),
        dtype=torch.float64,
    )
    strengths = [step.regularizer_strength for step in seen]
    assert strengths == pytest.approx([0.0] * 4 + [strength] * 3, rel=1e-12)
    for one, other in zip(calibrated, declared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_stage_ends_where_it_is_told_to(fit, align, adapted):
    spec = align(steps=9, batch_size=4, learning_rate=0.01)
    whole, steps, _ = fit(spec, mixture(), stop=4)
    model, seen = adapted(torch.float32), []
    done = train(
        model,
        make_optimizer(model, spec),
        method_batches(mixture(), spec),
        spec,
        method=make_method(model, spec),
        on_step=seen.append,
        stop=lambda step: step == 4,
    )
    assert (done, seen) == (4, steps)
    assert equal([p for p in model.parameters() if p.requires_grad], whole)


def test_booster_with_vaccine_takes_the_perturbed_alignment_gradient(fit, align):
    common = {"steps": 1, "batch_size": 4, "learning_rate": 0.01, "max_grad_norm": 1e9}
    both = align(**common, method="booster+vaccine", harmful=HARMFUL, vaccine={"rho": 5.0})
    none = align(
        **common, method="booster+vaccine", harmful=HARMFUL, booster={"lambda": 0.0},
        vaccine={"rho": 5.0},
    )  # fmt: skip
    vaccine = align(**common, method="vaccine", vaccine={"rho": 5.0})
    (combined,), (without,), (alone,) = (
        fit(spec, mixed)[1]
        for spec, mixed in ((both, mixture(HARM)), (none, mixture(HARM)), (vaccine, mixture()))
    )
    assert combined.loss == without.loss == alone.loss
    assert without.grad_norm == pytest.approx(alone.grad_norm, rel=1e-6)
    assert abs(combined.grad_norm - alone.grad_norm) > 1e-4


def test_lisa_takes_its_states_data_in_turn(align, finetune):
    spec = method_of("lisa", align, finetune)
    firsts = [set(b.input_ids[:, 2].tolist()) for b in method_batches(mixture(HARM), spec)]
    alignment = [found == {13} for found in firsts]
    assert alignment == [True, True, False, False] * 2 + [True]
    assert all(
        found <= {11, 12} for found, safe in zip(firsts, alignment, strict=True) if not safe
    )


def test_the_alignment_rows_are_those_of_a_stage_without_harmful_data(align):
    spec = align(steps=10, batch_size=4, method="booster", harmful=HARMFUL)
    pairs = list(method_batches(mixture(HARM), spec))
    plain = method_batches(mixture(), align(steps=10, batch_size=4))
    for pair, batch in zip(pairs, plain, strict=True):
        assert isinstance(pair, PairedBatch)
        assert torch.equal(pair.alignment.input_ids, batch.input_ids)
        assert len(pair.harmful.input_ids) == 3
    joined = torch.cat([pair.harmful.input_ids[:, 2] for pair in pairs])
    assert set(joined.tolist()) == {13}


def test_the_held_out_loss_is_the_mean_over_all_targets(adapted):
    model = adapted(torch.float32)
    mixed = mixture(HARM, samples(5, first=14))
    total, count = 0.0, 0
    for row in mixed.test:
        ids, labels = torch.tensor([row.ids]), torch.tensor([row.ids]).clone()
        labels[:, : row.num_prompt] = IGNORED
        targets = len(row.ids) - row.num_prompt
        total += float(model(input_ids=ids, labels=labels).loss.detach()) * targets
        count += targets
    for size in (2, 5):
        found = held_out_loss(model, mixed, batch_size=size, device="cpu")
        assert found == pytest.approx(total / count, rel=1e-5)
    assert model.training


def test_a_harmful_loss_that_is_not_finite_ends_the_run_before_the_weights_change(adapted, align):
    spec = align(steps=3, batch_size=4, method="booster", harmful=HARMFUL)
    model, seen = adapted(torch.float32), []
    method = make_method(model, spec)
    kept = []

    def broken(step, batch):
        losses = method(step, batch)
        kept[:] = [p.detach().clone() for p in model.parameters()]
        if step == 1:
            return losses._replace(measured={**losses.measured, "perturbed_loss": math.nan})
        return losses

    words = r"safe, step 2: perturbed loss must be finite; got nan\. Lower learning_rate"
    stream = method_batches(mixture(HARM), spec)
    with pytest.raises(TrainingError, match=words):
        train(model, make_optimizer(model, spec), stream, spec, method=broken, on_step=seen.append)
    assert [metrics.step for metrics in seen] == [1]
    assert equal(kept, list(model.parameters()))


def test_a_model_with_nothing_to_train_is_refused(adapted, align):
    model = adapted(torch.float32).requires_grad_(False)
    with pytest.raises(ConfigError, match=r"safe: some parameter must be trainable; got none"):
        make_method(model, align())


def test_a_gradient_that_is_not_finite_ends_the_run_too(adapted, align):
    spec = align(steps=3, batch_size=4)
    model = adapted(torch.float32)
    method = make_method(model, spec)

    def broken(step, batch):
        losses = method(step, batch)
        next(p for p in model.parameters() if p.requires_grad).grad[0, 0] = math.inf
        return losses

    words = r"safe, step 1: the gradient's norm must be finite; got inf"
    with pytest.raises(TrainingError, match=words):
        train(
            model,
            make_optimizer(model, spec),
            method_batches(mixture(), spec),
            spec,
            method=broken,
        )
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert math.isfinite(float(target_loss(model, next(method_batches(mixture(), spec))).detach()))
