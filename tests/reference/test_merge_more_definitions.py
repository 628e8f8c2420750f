"""The methods beyond TIES and DARE against their definitions, in float64 and plain Python."""

import itertools
import math

import pytest
import torch
from pydantic import TypeAdapter

from safemerge.config.recipe import Method
from safemerge.merge import merge_tensor
from safemerge.merge.mask import keep_mask
from safemerge.merge.sphere import karcher_shares, multi_slerp_shares
from safemerge.merge.stock import stock_ratio

pytestmark = pytest.mark.reference

METHOD = TypeAdapter(Method)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (9, 11)
WEIGHTS = {"a": 0.7, "b": 0.2, "c": 1.1}


def models(count=4):
    generator = torch.Generator().manual_seed(12)
    stack = [torch.randn(SHAPE, generator=generator) for _ in range(count)]
    return stack[0], dict(zip("abc", stack[1:], strict=True))


def merged(name, base, experts, **parameters):
    method = METHOD.validate_python({"name": name, **parameters})
    return merge_tensor(method, tensor=NAME, base=base, experts=experts, seed=5).double()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# --- sparsification ---------------------------------------------------------------------


def pruned(rows, name, density, epsilon, rescale="probability"):
    """DELLA's MagPrune, entry by entry: rank in the row, probability, mask, rescale."""
    columns = len(rows[0])
    result = []
    for at, row in enumerate(rows):
        order = sorted(range(columns), key=lambda j: (-abs(row[j]), j))
        line = [0.0] * columns
        for rank, j in enumerate(order):
            keep = density + epsilon - 2 * epsilon * rank / (columns - 1)
            index = at * columns + j
            kept = bool(keep_mask(5, NAME, name, index, index + 1, keep))
            line[j] = row[j] * kept / (keep if rescale == "probability" else 1.0)
        result.append(line)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.3), (0.3, 0.2), (0.8, 0.0)])
def test_della_linear_is_its_definition(density, epsilon):
    base, experts = models()
    expected = base.double()
    for name, weight in WEIGHTS.items():
        rows = (experts[name].double() - base.double()).tolist()
        expected = expected + 1.3 * weight * pruned(rows, name, density, epsilon)
    found = merged(
        "della_linear", base, experts, weights=WEIGHTS, density=density, epsilon=epsilon,
        **{"lambda": 1.3},
    )  # fmt: skip
    close(found, expected)


def test_della_elects_signs_as_ties():
    base, experts = models()
    sparse = [
        weight * pruned((experts[name].double() - base.double()).tolist(), name, 0.5, 0.2)
        for name, weight in WEIGHTS.items()
    ]
    expected = base.double().clone()
    for i, j in itertools.product(range(SHAPE[0]), range(SHAPE[1])):
        values = [float(part[i, j]) for part in sparse]
        sign = 1.0 if sum(values) >= 0 else -1.0
        chosen = [k for k, value in enumerate(values) if value * sign > 0]
        if chosen:
            weights = [list(WEIGHTS.values())[k] for k in chosen]
            expected[i, j] += sum(values[k] for k in chosen) / sum(weights)
    close(merged("della", base, experts, weights=WEIGHTS, epsilon=0.2), expected)


@pytest.mark.parametrize(
    ("name", "extra"), [("dare_linear", {}), ("della_linear", {"epsilon": 0.2})]
)
def test_rescaling_to_the_l1_norm_keeps_the_norm(name, extra):
    base, experts = models()
    found = merged(name, base, experts, weights={"a": 1.0}, density=0.4, rescale="l1", **extra)
    task_vector, update = experts["a"].double() - base.double(), found - base.double()
    kept = update.abs() > 1e-6
    assert 0 < int(kept.sum()) < kept.numel()
    assert float(update.abs().sum()) == pytest.approx(float(task_vector.abs().sum()), rel=1e-5)
    ratio = update[kept] / task_vector[kept]
    close(ratio, ratio[0].expand_as(ratio))
    plain = merged(name, base, experts, weights={"a": 1.0}, density=0.4, rescale="none", **extra)
    close((plain - base.double())[kept], task_vector[kept])


def outer_trimmed(values, density, gamma):
    order = sorted(range(len(values)), key=lambda at: (-abs(values[at]), at))
    num_kept = max(1, math.floor(density * len(values)))
    num_top = min(math.floor(gamma * len(values)), len(values) - num_kept)
    kept = set(order[num_top : num_top + num_kept])
    return [value if at in kept else 0.0 for at, value in enumerate(values)]


@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.1), (0.2, 0.0), (0.9, 0.4), (1.0, 0.1), (0.01, 0.99)]
)
def test_breadcrumbs_is_its_definition(density, gamma):
    base, experts = models()
    expected = base.double()
    for name, weight in WEIGHTS.items():
        values = (experts[name].double() - base.double()).flatten().tolist()
        trimmed = outer_trimmed(values, density, gamma) if density < 1.0 else values
        expected = expected + weight * torch.tensor(trimmed, dtype=torch.float64).reshape(SHAPE)
    found = merged("breadcrumbs", base, experts, weights=WEIGHTS, density=density, gamma=gamma)
    close(found, expected)


def test_breadcrumbs_without_gamma_is_a_trim_and_not_zero():
    # NOTE: an empty slice at gamma 0 once made another library return zero here.
    base, experts = models()
    found = merged("breadcrumbs_ties", base, experts, weights=WEIGHTS, density=0.3, gamma=0.0)
    trimmed = merged("ties", base, experts, weights=WEIGHTS, density=0.3)
    assert torch.equal(found, trimmed)
    assert not torch.equal(found, base.double())


@pytest.mark.parametrize("min_agreeing", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_consensus_is_its_definition(threshold, min_agreeing):
    base, experts = models()
    updates = [WEIGHTS[name] * (experts[name].double() - base.double()) for name in WEIGHTS]
    expected = base.double().clone()
    kept = 0
    for i, j in itertools.product(range(SHAPE[0]), range(SHAPE[1])):
        values = [float(update[i, j]) for update in updates]
        total = sum(values)
        needing = sum(abs(value) > threshold * abs(total - value) for value in values)
        if needing >= min_agreeing:
            expected[i, j] += 0.8 * total
            kept += 1
    assert 0 < kept <= expected.numel()
    found = merged(
        "consensus_ta", base, experts, weights=WEIGHTS, mask_threshold=threshold,
        min_agreeing=min_agreeing, **{"lambda": 0.8},
    )  # fmt: skip
    close(found, expected)


# --- angles -----------------------------------------------------------------------------


def test_model_stock_is_its_definition():
    base, experts = models()
    # NOTE: a common part makes the angles acute, as those of experts of one base are.
    common = torch.full(SHAPE, 0.8)
    experts = {name: tensor + common for name, tensor in experts.items()}
    updates = [(experts[name].double() - base.double()).flatten() for name in "abc"]
    pairs = [
        float(first @ second / (first.norm() * second.norm()))
        for first, second in itertools.combinations(updates, 2)
    ]
    cosine = sum(pairs) / 3
    ratio = 3 * cosine / (1 + 2 * cosine)
    assert 0.1 < ratio < 1.0
    mean = sum(experts[name].double() for name in "abc") / 3
    expected = ratio * mean + (1 - ratio) * base.double()
    close(merged("model_stock", base, experts, models=["c", "a", "b"]), expected)


def test_model_stock_takes_the_base_where_experts_disagree():
    products = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    assert stock_ratio(products) == 0.0
    assert stock_ratio(torch.zeros(3, 3, dtype=torch.float64)) == 0.0
    assert stock_ratio(torch.ones(4, 4, dtype=torch.float64)) == 1.0


def karcher_by_descent(points, weights):
    """The mean on the sphere by many small gradient steps, without the closed update."""
    point = sum(weight * p for weight, p in zip(weights, points, strict=True))
    point = point / point.norm()
    for _ in range(3000):
        pull = torch.zeros_like(point)
        for weight, p in zip(weights, points, strict=True):
            cosine = float(point @ p)
            across = p - cosine * point
            pull += weight * math.acos(cosine) * across / across.norm()
        point = point + 0.05 * pull
        point = point / point.norm()
    return point


def test_the_karcher_mean_minimises_the_squared_angles():
    base, experts = models()
    flat = [experts[name].double().flatten() for name in "abc"]
    norms = [float(vector.norm()) for vector in flat]
    weights = [value / 2.0 for value in WEIGHTS.values()]
    point = karcher_by_descent([v / n for v, n in zip(flat, norms, strict=True)], weights)
    length = sum(weight * norm for weight, norm in zip(weights, norms, strict=True))
    found = merged("karcher", base, experts, weights=WEIGHTS)
    close(found, (length * point).reshape(SHAPE))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.75])
def test_the_karcher_mean_of_two_models_of_one_norm_is_slerp(t):
    base, experts = models()
    second = experts["b"] * experts["a"].norm() / experts["b"].norm()
    pair = {"a": experts["a"], "b": second}
    found = merged("karcher", base, pair, weights={"a": 1.0 - t, "b": t})
    close(found, merged("slerp", base, pair, models=["a", "b"], t=t))


def test_multi_slerp_of_two_equal_weights_is_slerp_half_way():
    base, experts = models()
    second = experts["b"] * experts["a"].norm() / experts["b"].norm()
    pair = {"a": experts["a"], "b": second}
    found = merged("multi_slerp", base, pair, weights={"a": 1.0, "b": 1.0})
    close(found, merged("slerp", base, pair, models=["a", "b"], t=0.5))


def test_multi_slerp_is_one_step_in_the_tangent_space():
    base, experts = models()
    flat = [experts[name].double().flatten() for name in "abc"]
    weights = [value / 2.0 for value in WEIGHTS.values()]
    units = [vector / vector.norm() for vector in flat]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / mean.norm()
    pull = torch.zeros_like(mean)
    for weight, unit in zip(weights, units, strict=True):
        angle = math.acos(float(unit @ mean))
        pull += weight * angle / math.sin(angle) * (unit - math.cos(angle) * mean)
    size = float(pull.norm())
    length = sum(w * float(v.norm()) for w, v in zip(weights, flat, strict=True))
    expected = length * (math.cos(size) * mean + math.sin(size) / size * pull)
    close(merged("multi_slerp", base, experts, weights=WEIGHTS), expected.reshape(SHAPE))
    plain = merged("multi_slerp", base, experts, weights=WEIGHTS, variant="mergekit")
    close(plain, (length * mean).reshape(SHAPE))


def test_directions_that_cancel_are_averaged_and_zero_tensors_have_none():
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert karcher_shares(opposite, [0.5, 0.5]) == [0.5, 0.5]
    assert multi_slerp_shares(torch.zeros(2, 2, dtype=torch.float64), [0.3, 0.7]) == [0.3, 0.7]
    one = torch.tensor([[4.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    assert karcher_shares(one, [0.5, 0.5]) == [0.5, 0.0]
