import itertools
import math

import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge.mask import keep_mask
from safemerge.merge.threshold import (
    drop_and_rescale_,
    magnitude_threshold,
    sparsify_at_random,
    sparsify_by_magnitude,
    trim_,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def brute_force(task_vector, density):
    """The definition: sort by falling magnitude, then by index; keep the first k."""
    flat = task_vector.flatten().tolist()
    count = max(1, math.floor(density * len(flat)))
    order = sorted(range(len(flat)), key=lambda at: (-abs(flat[at]), at))
    kept = set(order[:count])
    values = [value if at in kept else 0.0 for at, value in enumerate(flat)]
    return torch.tensor(values).reshape(task_vector.shape)


@pytest.mark.parametrize("density", [1e-9, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (13,), (5, 7), (2, 3, 4)], ids=str)
def test_trim_is_its_definition(shape, density):
    task_vector = normal(*shape)
    expected = brute_force(task_vector, density)
    assert torch.equal(sparsify_by_magnitude(task_vector, density=density), expected)


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
def test_ties_keep_the_lower_index(density):
    task_vector = torch.tensor([1.0, -1.0, 2.0, 1.0, -2.0, 0.0, 1.0, -1.0, 0.0, 1.0])
    expected = brute_force(task_vector, density)
    assert torch.equal(sparsify_by_magnitude(task_vector, density=density), expected)


def test_every_small_pattern_of_ties_is_its_definition():
    for values in itertools.product([-1.0, 0.0, 1.0, 2.0], repeat=5):
        task_vector = torch.tensor(values)
        for density in (0.2, 0.5, 0.7):
            expected = brute_force(task_vector, density)
            assert torch.equal(sparsify_by_magnitude(task_vector, density=density), expected)


def test_many_ties_keep_the_exact_count():
    task_vector = normal(50_000).mul(8).round().div(8)
    kept = sparsify_by_magnitude(task_vector, density=0.3)
    assert torch.equal(kept, brute_force(task_vector, 0.3))
    assert kept.count_nonzero() == 15_000


def test_subnormal_magnitudes_are_compared_exactly():
    smallest = 2.0**-149
    task_vector = torch.tensor([smallest, 2 * smallest, 3 * smallest])
    expected = torch.tensor([0.0, 2 * smallest, 3 * smallest])
    assert torch.equal(sparsify_by_magnitude(task_vector, density=0.67), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trim_keeps_the_dtype_and_the_input(dtype):
    task_vector = normal(64).to(dtype)
    before = task_vector.clone()
    kept = sparsify_by_magnitude(task_vector, density=0.5)
    assert kept.dtype == dtype
    assert torch.equal(kept, brute_force(task_vector, 0.5).to(dtype))
    assert torch.equal(task_vector, before)


def test_an_empty_tensor_stays_empty():
    assert sparsify_by_magnitude(torch.zeros(0, 3), density=0.5).shape == (0, 3)
    with pytest.raises(MergeError, match="must have entries"):
        magnitude_threshold(torch.zeros(0), density=0.5)


@pytest.mark.parametrize("start", [0, 3, 7, 20])
def test_a_part_is_trimmed_as_in_the_whole(start):
    whole = normal(20).mul(2).round()
    threshold = magnitude_threshold(whole, density=0.4)
    part = whole[start:].clone()
    trim_(part, threshold, start=start)
    assert torch.equal(part, brute_force(whole, 0.4)[start:])


@pytest.mark.parametrize("density", [0.0, -1.0, 1.5, float("nan")])
def test_a_density_out_of_range_is_refused(density):
    words = rf"must be in \(0, 1\]; got {density}"
    with pytest.raises(MergeError, match=words):
        sparsify_by_magnitude(normal(4), density=density)
    with pytest.raises(MergeError, match=words):
        sparsify_at_random(normal(4), density=density, seed=0, tensor="t", expert="e")


@pytest.mark.parametrize("density", [0.5, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused_even_where_dropped(density, value):
    task_vector = normal(1000)
    task_vector[::3] = value
    with pytest.raises(
        MergeError, match="entries must be finite; got 334 NaN or infinite of 1000"
    ):
        sparsify_by_magnitude(task_vector, density=density)
    with pytest.raises(MergeError, match="tensor 't', expert 'e': entries must be finite"):
        sparsify_at_random(task_vector, density=density, seed=0, tensor="t", expert="e")


def test_drop_and_rescale_is_mask_over_density():
    task_vector = normal(30, 4)
    kept = sparsify_at_random(task_vector, density=0.25, seed=3, tensor="t", expert="e")
    mask = keep_mask(3, "t", "e", 0, 120, 0.25).reshape(30, 4)
    assert torch.equal(kept, torch.where(mask, task_vector * 4.0, 0.0))


def test_drop_and_rescale_at_density_one_changes_nothing():
    task_vector = normal(30)
    kept = sparsify_at_random(task_vector, density=1.0, seed=3, tensor="t", expert="e")
    assert torch.equal(kept, task_vector)


def test_parts_are_dropped_as_in_the_whole():
    whole = normal(100)
    names = {"density": 0.3, "seed": 1, "tensor": "t", "expert": "e"}
    part = whole[40:].clone()
    drop_and_rescale_(part, start=40, **names)
    assert torch.equal(part, sparsify_at_random(whole, **names)[40:])


def test_drop_and_rescale_is_unbiased():
    """Mean over 400 seeds; each entry within 5 standard deviations, 6e-7 two-sided each."""
    task_vector, density, num_seeds = normal(200), 0.3, 400
    total = sum(
        sparsify_at_random(task_vector, density=density, seed=seed, tensor="t", expert="e")
        for seed in range(num_seeds)
    )
    deviation = task_vector.abs() * math.sqrt((1 - density) / density / num_seeds)
    assert (((total / num_seeds - task_vector) / deviation).abs() < 5.0).all()
