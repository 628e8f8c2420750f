"""Data-aware methods against their definitions in float64, by other formulas."""

import pytest
import torch
from pydantic import TypeAdapter

from safemerge.config.recipe import Method, Step
from safemerge.merge import merge_tensor
from safemerge.merge.regmean import least_squares_mean
from safemerge.weights import TensorStatistics

pytestmark = pytest.mark.reference

METHOD = TypeAdapter(Method)
STEP = TypeAdapter(Step)
NAME = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = {"base": 0.5, "a": 1.0, "b": 0.3}


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def models(shape):
    stack = {name: random(*shape, seed=at) for at, name in enumerate(WEIGHTS)}
    return stack["base"], {name: stack[name] for name in "ab"}, stack


def fishers(shape):
    return {name: random(*shape, seed=50 + at).square() for at, name in enumerate(WEIGHTS)}


def merged_fisher(shape, measured, weights=WEIGHTS, **fields):
    base, experts, _ = models(shape)
    method = METHOD.validate_python({"name": "fisher", "weights": weights, **fields})
    return merge_tensor(method, tensor=NAME, base=base, experts=experts, statistics=measured)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (9, 6), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("target", [None, "a"])
def test_fisher_is_its_definition_entry_by_entry(shape, normalize, target):
    found = fishers(shape)
    for fisher in found.values():
        fisher.flatten()[:2] = 0.0
    norms = {"base": 3.0, "a": 0.2, "b": 40.0}
    measured = {
        name: TensorStatistics(fisher=found[name], fisher_norm=norms[name]) for name in found
    }
    floor = 1e-3
    expected = torch.zeros(shape, dtype=torch.float64).flatten()
    _, _, stack = models(shape)
    for entry in range(len(expected)):
        above = below = 0.0
        for name, weight in WEIGHTS.items():
            information = float(found[name].flatten()[entry])
            if target in (None, name):
                information = max(information, floor)
            information *= weight / (norms[name] if normalize else 1.0)
            above += information * float(stack[name].flatten()[entry])
            below += information
        expected[entry] = above / below
    merged = merged_fisher(shape, measured, normalize=normalize, floor=floor, target=target)
    close(merged, expected.reshape(shape))


def test_fisher_with_equal_fishers_is_the_weighted_mean():
    same = random(9, 6, seed=1).square() + 0.1
    measured = {name: TensorStatistics(fisher=same, fisher_norm=2.0) for name in WEIGHTS}
    _, _, stack = models((9, 6))
    mean = sum(WEIGHTS[name] * stack[name].double() for name in WEIGHTS) / sum(WEIGHTS.values())
    close(merged_fisher((9, 6), measured), mean)


def test_a_relative_floor_is_a_share_of_the_mean_fisher():
    found = fishers((9, 6))
    small = {
        name: TensorStatistics(
            fisher=fisher * 1e-12, fisher_norm=1e-12, fisher_mean=float(fisher.mean()) * 1e-12
        )
        for name, fisher in found.items()
    }
    plain = {
        name: TensorStatistics(fisher=fisher, fisher_mean=float(fisher.mean()))
        for name, fisher in found.items()
    }
    relative = {"floor": 0.1, "floor_unit": "mean"}
    close(
        merged_fisher((9, 6), small, **relative), merged_fisher((9, 6), plain, **relative).double()
    )
    _, _, stack = models((9, 6))
    mean = sum(WEIGHTS[name] * stack[name].double() for name in WEIGHTS) / sum(WEIGHTS.values())
    close(merged_fisher((9, 6), small), mean)  # all entries are below an absolute 1e-6


# --- RegMean ----------------------------------------------------------------------------

ROWS, COLUMNS, TOKENS = 5, 8, 30


def inputs_of(at, count=TOKENS):
    return random(count, COLUMNS, seed=200 + at).double()


def matrices():
    return [random(ROWS, COLUMNS, seed=300 + at).double() for at in range(3)]


def grams(count=TOKENS):
    return [inputs_of(at, count).T @ inputs_of(at, count) / count for at in range(3)]


def test_regmean_is_least_squares_on_all_inputs_together():
    weights = [0.5, 1.0, 2.0]
    scales = [(weight / TOKENS) ** 0.5 for weight in weights]
    stacked = torch.cat([inputs_of(at) * scale for at, scale in enumerate(scales)])
    targets = torch.cat(
        [inputs_of(at) @ matrices()[at].T * scale for at, scale in enumerate(scales)]
    )
    expected = torch.linalg.lstsq(stacked, targets).solution.T
    found = least_squares_mean(matrices(), grams(), weights, off_diagonal=1.0, ridge=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("off_diagonal", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_regmean_is_its_closed_form_with_smaller_off_diagonals(off_diagonal, ridge):
    weights = [1.0, 1.0, 0.4]
    above, below = torch.zeros(ROWS, COLUMNS).double(), torch.zeros(COLUMNS, COLUMNS).double()
    for matrix, gram, weight in zip(matrices(), grams(), weights, strict=True):
        diagonal = torch.diag(torch.diag(gram))
        kept = off_diagonal * gram + (1.0 - off_diagonal) * diagonal
        kept = kept + ridge * torch.diag(gram).mean() * torch.eye(COLUMNS).double()
        above, below = above + weight * matrix @ kept, below + weight * kept
    found = least_squares_mean(
        matrices(), grams(), weights, off_diagonal=off_diagonal, ridge=ridge
    )
    torch.testing.assert_close(found, above @ torch.inverse(below), rtol=1e-9, atol=1e-9)


def test_the_method_merges_a_layer_as_the_closed_form_does():
    base, experts, _ = models((ROWS, COLUMNS))
    method = METHOD.validate_python({"name": "regmean", "weights": {"a": 1.0, "b": 0.3}})
    measured = {
        name: TensorStatistics(gram=gram.float())
        for name, gram in zip("ab", grams(), strict=False)
    }
    found = merge_tensor(method, tensor=NAME, base=base, experts=experts, statistics=measured)
    expected = least_squares_mean(
        [experts[name].double() for name in "ab"],
        grams()[:2],
        [1.0, 0.3],
        off_diagonal=0.9,
        ridge=0.0,
    )
    close(found, expected)


# --- LED --------------------------------------------------------------------------------


def top(scores, count):
    order = sorted(range(scores.numel()), key=lambda at: -float(scores.flatten()[at]))
    return set(order[:count])


def test_led_keeps_what_is_important_to_one_expert_and_the_base_alone():
    base, experts, _ = models((9, 6))
    density = {"a": 0.3, "b": 0.6}
    measured = {
        name: TensorStatistics(
            importance=random(9, 6, seed=at).abs(), base_importance=random(9, 6, seed=at + 9).abs()
        )
        for at, name in ((400, "a"), (500, "b"))
    }
    elected = {
        name: top(item.importance, int(density[name] * 54))
        & top(item.base_importance, int(density[name] * 54))
        for name, item in measured.items()
    }
    expected = base.double().flatten().clone()
    changed = 0
    for name, other in (("a", "b"), ("b", "a")):
        weight = {"a": 0.7, "b": 0.4}[name]
        for at in elected[name] - elected[other]:
            task_vector = experts[name].double().flatten()[at] - base.double().flatten()[at]
            expected[at] += weight * task_vector
            changed += 1
    assert elected["a"] & elected["b"]
    assert 0 < changed < 54
    method = METHOD.validate_python({"name": "task_arithmetic", "weights": {"a": 0.7, "b": 0.4}})
    led = STEP.validate_python({"name": "led", "density": density})
    found = merge_tensor(
        method, tensor=NAME, base=base, experts=experts, steps=[led], statistics=measured
    )
    close(found, expected.reshape(9, 6))
