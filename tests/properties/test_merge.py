"""Properties of merging, for any input that Hypothesis finds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import TypeAdapter

from safemerge.config.recipe import Method
from safemerge.merge import merge_tensor
from safemerge.merge.consensus import disjoint_mean, elect_sign
from safemerge.merge.interpolate import slerp, slerp_shares
from safemerge.merge.mask import keep_mask
from safemerge.merge.threshold import sparsify_by_magnitude
from safemerge.weights import TensorStatistics

METHOD = TypeAdapter(Method)
NAME = "model.layers.0.mlp.up_proj.weight"

# Entries of half-precision size, so that exact statements hold in float32 arithmetic.
entries = st.floats(-8.0, 8.0, width=16)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, max_side=6)
densities = st.floats(1e-3, 1.0)
weights = st.floats(-2.0, 2.0)
names = st.text(min_size=1, max_size=8)


@st.composite
def stacks(draw, min_count=1, max_count=4):
    shape = draw(shapes)
    count = draw(st.integers(min_count, max_count))
    arrays = [draw(hnp.arrays(np.float32, shape, elements=entries)) for _ in range(count)]
    return [torch.from_numpy(array) for array in arrays]


def merge(name, base, experts, **parameters):
    method = METHOD.validate_python({"name": name, **parameters})
    return merge_tensor(method, tensor=NAME, base=base, experts=experts)


@given(stacks(max_count=1), densities)
def test_trim_keeps_exactly_the_declared_number(stack, density):
    (task_vector,) = stack
    kept = sparsify_by_magnitude(task_vector, density=density).flatten()
    flat = task_vector.flatten()
    count = max(1, math.floor(density * flat.numel()))
    largest = flat.abs().sort(descending=True).values[:count]
    assert torch.equal(kept.abs().sort(descending=True).values[:count], largest)
    assert kept.count_nonzero() == largest.count_nonzero()
    assert ((kept == flat) | (kept == 0)).all()


@given(stacks(min_count=2), st.floats(0.0, 2.0), weights)
def test_task_arithmetic_is_linear_in_lambda(stack, lambda_, weight):
    base, *rest = stack
    experts = {f"e{at}": tensor for at, tensor in enumerate(rest)}
    given_weights = dict.fromkeys(experts, weight)
    at_one, at_lambda = (
        merge("task_arithmetic", base, experts, weights=given_weights, **{"lambda": value})
        for value in (1.0, lambda_)
    )
    torch.testing.assert_close(at_lambda - base, lambda_ * (at_one - base), rtol=1e-4, atol=1e-3)


@given(stacks(min_count=2, max_count=2), densities, st.integers(2, 4), st.floats(0.1, 2.0))
def test_identical_experts_make_ties_equal_one(stack, density, count, weight):
    base, expert = stack
    alone = merge("ties", base, {"e0": expert}, weights={"e0": 1.0}, density=density)
    experts = {f"e{at}": expert for at in range(count)}
    together = merge(
        "ties", base, experts, weights=dict.fromkeys(experts, weight), density=density
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@given(stacks())
def test_elected_signs_flip_with_the_input(stack):
    total = sum(stack)
    flipped = elect_sign([-tensor for tensor in stack])
    assert torch.equal(flipped, torch.where(total == 0, 1.0, -elect_sign(stack)))


@given(stacks(min_count=1), st.data())
def test_disjoint_mean_lies_between_zero_and_the_extremes(stack, data):
    given_weights = data.draw(
        st.lists(st.floats(0.1, 2.0), min_size=len(stack), max_size=len(stack))
    )
    mean = disjoint_mean(stack, given_weights)
    stacked = torch.stack(stack)
    high, low = stacked.amax(0).clamp(min=0), stacked.amin(0).clamp(max=0)
    assert (mean <= high + 1e-4).all()
    assert (mean >= low - 1e-4).all()


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
@given(stacks(min_count=3, max_count=3), weights, weights)
def test_names_decide_and_not_the_order_of_listing(name, stack, first, second):
    base, a, b = stack
    forth = merge(name, base, {"a": a, "b": b}, weights={"a": first, "b": second})
    back = merge(name, base, {"b": b, "a": a}, weights={"b": second, "a": first})
    assert torch.equal(forth, back)


@given(stacks(min_count=2, max_count=2), st.floats(0.0, 1.0))
def test_slerp_is_the_same_from_either_end(stack, t):
    first, second = stack
    shares = slerp_shares(first, second, t=t)
    mirrored = slerp_shares(second, first, t=1.0 - t)
    assert shares == pytest.approx(mirrored[::-1], rel=1e-6, abs=1e-9)
    assert slerp(first, second, t=t).shape == first.shape


@given(
    st.integers(0, 2**63 - 1), names, names, st.integers(0, 2**40), st.integers(0, 300), densities
)
@settings(max_examples=50)
def test_masks_of_adjoining_ranges_join(seed, tensor, expert, start, length, density):
    middle, stop = start + length // 3, start + length
    whole = keep_mask(seed, tensor, expert, start, stop, density)
    parts = [
        keep_mask(seed, tensor, expert, start, middle, density),
        keep_mask(seed, tensor, expert, middle, stop, density),
    ]
    assert torch.equal(torch.cat(parts), whole)


# --- further methods --------------------------------------------------------------------


@given(stacks(min_count=2, max_count=2), densities, st.floats(0.0, 0.99))
def test_breadcrumbs_keeps_exactly_the_declared_number(stack, density, gamma):
    base, expert = stack
    # NOTE: distinct magnitudes that survive the sum with a base of zeros.
    expert = torch.arange(1.0, expert.numel() + 1).reshape(expert.shape)
    base = torch.zeros_like(expert)
    merged = merge(
        "breadcrumbs", base, {"a": expert}, weights={"a": 1.0}, density=density, gamma=gamma
    )
    count = expert.numel()
    kept = max(1, math.floor(density * count)) if density < 1.0 else count
    dropped_at_the_top = min(math.floor(gamma * count), count - kept)
    assert int(merged.count_nonzero()) == kept
    assert float(merged.max()) == count - dropped_at_the_top


@given(stacks(min_count=2), st.floats(0.0, 2.0))
def test_consensus_of_one_is_task_arithmetic_where_nothing_must_stand_out(stack, lambda_):
    base, *rest = stack
    experts = {f"e{at}": tensor for at, tensor in enumerate(rest)}
    parameters = {"weights": dict.fromkeys(experts, 0.5), "lambda": lambda_}
    consensus = merge(
        "consensus_ta", base, experts, **parameters, mask_threshold=0.0, min_agreeing=1
    )
    assert torch.equal(consensus, merge("task_arithmetic", base, experts, **parameters))


@given(stacks(max_count=1), st.lists(st.floats(0.1, 2.0), min_size=2, max_size=4))
@pytest.mark.parametrize("name", ["karcher", "multi_slerp"])
def test_a_mean_of_one_direction_is_that_model(name, stack, given_weights):
    (expert,) = stack
    experts = {f"e{at}": expert.clone() for at in range(len(given_weights))}
    shares = dict(zip(experts, given_weights, strict=True))
    merged = merge(name, torch.zeros_like(expert), experts, weights=shares)
    torch.testing.assert_close(merged, expert, rtol=1e-5, atol=1e-5)


@given(stacks(min_count=3))
def test_model_stock_lies_between_the_base_and_the_mean(stack):
    base, *rest = stack
    experts = {f"e{at}": tensor for at, tensor in enumerate(rest)}
    merged = merge("model_stock", base, experts, models=list(experts))
    mean = torch.stack(rest).mean(0)
    low, high = torch.minimum(base, mean), torch.maximum(base, mean)
    assert ((merged >= low - 1e-4) & (merged <= high + 1e-4)).all()


@given(stacks(min_count=3, max_count=3), weights, st.integers(2, 5), st.integers(0, 7))
def test_equal_anchors_are_one_number(stack, weight, num_anchors, layer):
    base, first, second = stack
    methods = [
        METHOD.validate_python({"name": "task_arithmetic", "weights": {"a": value, "b": 0.5}})
        for value in (weight, [weight] * num_anchors)
    ]
    options = {"tensor": f"model.layers.{layer}.mlp.up_proj.weight", "num_layers": 8}
    one, many = (
        merge_tensor(method, base=base, experts={"a": first, "b": second}, **options)
        for method in methods
    )
    torch.testing.assert_close(one, many, rtol=1e-6, atol=1e-6)


@given(stacks(min_count=2), st.integers(0, 2**31), st.floats(0.0, 10.0))
def test_fisher_stays_between_its_models_entry_by_entry(stack, seed, weight):
    generator = torch.Generator().manual_seed(seed)
    experts = {f"e{at}": tensor for at, tensor in enumerate(stack)}
    measured = {
        name: TensorStatistics(fisher=torch.rand(tensor.shape, generator=generator))
        for name, tensor in experts.items()
    }
    method = METHOD.validate_python(
        {"name": "fisher", "weights": {**dict.fromkeys(experts, 1.0), "e0": weight}}
    )
    merged = merge_tensor(method, tensor=NAME, base=stack[0], experts=experts, statistics=measured)
    together = torch.stack(stack)
    assert (merged >= together.amin(0) - 1e-5).all()
    assert (merged <= together.amax(0) + 1e-5).all()
