"""RepNoise's loss against a reading of its formula with loops over rows and layers."""

import math

import pytest
import torch

from safemerge.errors import ConfigError
from safemerge.training.batch import EncodedSample, collate
from safemerge.training.repnoise import (
    differing_targets,
    gaussian_mmd,
    repnoise_terms,
)
from safemerge.training.sft import target_loss


def mean_kernel(first, second, bandwidth):
    """Mean over pairs of five Gaussians, member by member."""
    total = 0.0
    for a in first:
        for b in second:
            distance = (a - b).square().sum().item()
            total += sum(math.exp(-distance / (bandwidth * f)) for f in (0.25, 0.5, 1, 2, 4))
    return total / (len(first) * len(second))


def mmd_by_formula(first, second):
    everyone = [*first, *second]
    apart = [(a - b).square().sum().item() for a in everyone for b in everyone]
    bandwidth = sum(apart) / (len(everyone) * (len(everyone) - 1))
    within = mean_kernel(first, first, bandwidth) + mean_kernel(second, second, bandwidth)
    return within - 2 * mean_kernel(first, second, bandwidth)


def test_the_distance_is_that_of_the_formula_and_zero_between_equals():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    second = torch.randn(4, 6, generator=generator, dtype=torch.float64) + 1
    expected = mmd_by_formula(first, second)
    assert expected > 0.1
    assert float(gaussian_mmd(first, second)) == pytest.approx(expected, abs=1e-12)
    assert float(gaussian_mmd(first, first)) == pytest.approx(0.0, abs=1e-12)
    assert float(gaussian_mmd(torch.zeros(2, 3), torch.zeros(2, 3))) == 0.0


def test_only_targets_that_differ_from_the_row_beside_count():
    harmless = collate([EncodedSample((1, 5, 6, 7), 2)])
    harmful = collate([EncodedSample((1, 5, 6, 9, 8), 2), EncodedSample((1, 4, 3, 7), 2)])
    assert differing_targets(harmless, harmful).tolist() == [
        [False, False, False, True, True],
        [False, False, True, False, False],
    ]


def terms_by_formula(model, harmless, harmful, ascent, noise, seed):
    """The loss from transformers' own outputs, row by row."""
    causal = model.get_base_model()
    layers, outputs, states = causal.model.layers, [], []
    handles = [
        *(
            layer.mlp.register_forward_hook(lambda _m, _i, o: outputs.append(o))
            for layer in layers
        ),
        *(layer.register_forward_hook(lambda _m, _i, o: states.append(o)) for layer in layers),
    ]
    model(input_ids=harmful.input_ids, attention_mask=harmful.attention_mask)
    for handle in handles:
        handle.remove()
    benign = model(
        input_ids=harmless.input_ids,
        attention_mask=harmless.attention_mask,
        labels=harmless.labels,
    ).loss
    chosen = differing_targets(harmless, harmful)

    def entropy(state):
        values = []
        for row, position in chosen.nonzero().tolist():
            logits = causal.lm_head(causal.model.norm(state[row, position - 1]))
            values.append(-torch.log_softmax(logits, 0)[harmful.input_ids[row, position]])
        return sum(values) / len(values)

    entropies = [entropy(state) for state in states]
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for output in outputs:
        drawn = torch.randn(output.shape, generator=generator).double()
        keep = chosen[..., None].double()
        distances.append(
            mmd_by_formula(
                [(row * k).flatten() for row, k in zip(output, keep, strict=True)],
                [(row * k).flatten() for row, k in zip(drawn, keep, strict=True)],
            )
        )
    unlearned = torch.log(1 + entropies[-1] + sum(entropies) / len(entropies))
    return benign + noise * sum(distances) / len(distances) - ascent * unlearned


def terms(model, harmless, harmful, seed=3, **fields):
    generator = torch.Generator().manual_seed(seed)
    return repnoise_terms(
        model, harmless, harmful, generator=generator, loss=target_loss, **fields
    )


def test_the_loss_is_that_of_the_formula(exact, adapted, rows):
    model, harmless, harmful = adapted(), rows(3, seed=1), rows(4, seed=2)
    settings = {"ascent": 0.7, "noise": 0.3}
    found = terms(model, harmless, harmful, **settings)
    expected = terms_by_formula(model, harmless, harmful, 0.7, 0.3, seed=3)
    assert found.total.item() == pytest.approx(expected.item(), abs=1e-10)
    assert found.noise_distance.item() > 0
    assert found.harmful_loss.item() > 0


def test_the_gradient_is_the_slope_of_the_formula(exact, adapted, rows):
    model, harmless, harmful = adapted(), rows(3, seed=1), rows(3, seed=2)
    parameter = next(p for p in model.parameters() if p.requires_grad)
    # Differences see the bandwidth move, which carries no gradient: without noise they agree.
    found = terms(model, harmless, harmful, ascent=0.7, noise=0.0)
    (gradient,) = torch.autograd.grad(found.total, [parameter])
    direction = gradient / gradient.norm()
    values = []
    with torch.no_grad():
        for step in (1e-4, -2e-4):
            parameter += step * direction
            values.append(terms_by_formula(model, harmless, harmful, 0.7, 0.0, seed=3).item())
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_noise_pulls_on_the_weights(exact, adapted, rows):
    model = adapted()
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = terms(model, rows(3, seed=1), rows(3, seed=2), ascent=0.0, noise=1.0)
    gradients = torch.autograd.grad(found.noise_distance, parameters)
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert max(float(g.norm()) for g in gradients) > 1e-6


def test_a_model_without_mlps_is_refused(rows):
    toy = torch.nn.Module()
    toy.base_model = torch.nn.Linear(2, 2)
    with pytest.raises(
        ConfigError, match="toy: repnoise needs modules named mlp and a final norm"
    ):
        terms(toy, rows(2, seed=1), rows(2, seed=2), ascent=1.0, noise=1.0, where="toy")
