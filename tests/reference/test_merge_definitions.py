"""Every method against its definition, entry by entry, in float64 and plain Python."""

import math

import pytest
import torch
from pydantic import TypeAdapter

from safemerge.config.recipe import Method
from safemerge.merge import merge_tensor
from safemerge.merge.mask import keep_mask

pytestmark = pytest.mark.reference

METHOD = TypeAdapter(Method)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (23, 7)
WEIGHTS = [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.7, "b": 0.2, "c": 1.1}, {"a": 0.9, "b": -0.4}]


def models(count=4):
    generator = torch.Generator().manual_seed(11)
    stack = [torch.randn(SHAPE, generator=generator) for _ in range(count)]
    return stack[0], dict(zip("abc", stack[1:], strict=True))


def trim(task_vector, name, density):
    order = sorted(range(len(task_vector)), key=lambda at: (-abs(task_vector[at]), at))
    kept = set(order[: max(1, math.floor(density * len(task_vector)))])
    return [value if at in kept else 0.0 for at, value in enumerate(task_vector)]


def drop(task_vector, name, density):
    mask = keep_mask(5, NAME, name, 0, len(task_vector), density).tolist()
    return [
        value / density if keep else 0.0 for value, keep in zip(task_vector, mask, strict=True)
    ]


def keep_all(task_vector, name, density):
    return task_vector


def add(values, weights):
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def agree(values, weights):
    weighted = [weight * value for weight, value in zip(weights, values, strict=True)]
    sign = 1.0 if sum(weighted) >= 0 else -1.0
    chosen = [at for at, value in enumerate(weighted) if value * sign > 0]
    if not chosen:
        return 0.0
    return sum(weighted[at] for at in chosen) / sum(abs(weights[at]) for at in chosen)


DEFINITIONS = {
    "task_arithmetic": (keep_all, add),
    "ties": (trim, agree),
    "dare_linear": (drop, add),
    "dare_ties": (drop, agree),
}


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_task_vector_methods_are_their_definitions(name, density, weights):
    sparsify, consensus = DEFINITIONS[name]
    base, experts = models()
    origin = base.double().flatten().tolist()
    sparse = {
        expert: sparsify(
            [
                x - y
                for x, y in zip(experts[expert].double().flatten().tolist(), origin, strict=True)
            ],
            expert,
            density,
        )
        for expert in weights
    }
    expected = [
        origin[at]
        + 1.3 * consensus([sparse[expert][at] for expert in weights], list(weights.values()))
        for at in range(len(origin))
    ]
    parameters = {"density": density} if name != "task_arithmetic" else {}
    method = METHOD.validate_python(
        {"name": name, "weights": weights, "lambda": 1.3, **parameters}
    )
    merged = merge_tensor(method, tensor=NAME, base=base, experts=experts, seed=5)
    target = torch.tensor(expected, dtype=torch.float64).reshape(SHAPE)
    torch.testing.assert_close(merged.double(), target, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_is_its_definition(t):
    base, experts = models()
    a, b = base.double(), experts["a"].double()
    theta = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    expected = (torch.sin((1 - t) * theta) * a + torch.sin(t * theta) * b) / torch.sin(theta)
    method = METHOD.validate_python({"name": "slerp", "models": ["base", "a"], "t": t})
    merged = merge_tensor(method, tensor=NAME, base=base, experts=experts)
    torch.testing.assert_close(merged.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_linear_is_its_definition(weights):
    base, experts = models()
    expected = sum(weight * experts[name].double() for name, weight in weights.items())
    method = METHOD.validate_python({"name": "linear", "weights": weights})
    merged = merge_tensor(method, tensor=NAME, base=base, experts=experts)
    total = sum(weights.values())
    torch.testing.assert_close(merged.double(), expected / total, rtol=1e-5, atol=1e-5)
