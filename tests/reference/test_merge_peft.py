"""Against peft 0.21's merge_utils, at density below 1.

peft elects signs before weighting and divides by the count of agreeing experts, which ``variant:
peft`` does at any weights, and the other variant at weights of 1. Its random masks are replaced
by ours.
"""

import pytest
import torch
from peft.utils import merge_utils
from pydantic import TypeAdapter

from safemerge.config.recipe import Method
from safemerge.merge import merge_tensor
from safemerge.merge.consensus import disjoint_mean, elect_sign
from safemerge.merge.mask import keep_mask
from safemerge.merge.threshold import sparsify_by_magnitude

pytestmark = pytest.mark.reference

METHOD = TypeAdapter(Method)
NAME = "model.layers.0.mlp.up_proj.weight"
SHAPE = (19, 6)


@pytest.fixture
def task_vectors():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(SHAPE, generator=generator) for _ in range(3)]


def merge(name, task_vectors, weights, **parameters):
    """Our merge on a base of zeros: the merged task vector."""
    experts = dict(zip("abc", task_vectors, strict=True))
    method = METHOD.validate_python(
        {"name": name, "weights": dict(zip("abc", weights, strict=True)), **parameters}
    )
    return merge_tensor(method, tensor=NAME, base=torch.zeros(SHAPE), experts=experts, seed=9)


@pytest.fixture
def our_masks(monkeypatch):
    """Makes peft's random pruning draw the masks of experts a, b, c in turn."""
    experts = iter("abc")

    def bernoulli(probabilities):
        density = round(probabilities.flatten()[0].item(), 6)
        count = probabilities.numel()
        return keep_mask(9, NAME, next(experts), 0, count, density).reshape(SHAPE).float()

    monkeypatch.setattr(merge_utils.torch, "bernoulli", bernoulli)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_trim_equals_pefts(task_vectors, density):
    for task_vector in task_vectors:
        expected = merge_utils.magnitude_based_pruning(task_vector, density)
        assert torch.equal(sparsify_by_magnitude(task_vector, density=density), expected)


def test_sign_election_and_disjoint_mean_equal_pefts(task_vectors):
    stacked = torch.stack(task_vectors)
    mask = merge_utils.calculate_majority_sign_mask(stacked)
    assert torch.equal(torch.sign(stacked) == elect_sign(task_vectors), mask)
    expected = merge_utils.disjoint_merge(stacked, mask)
    torch.testing.assert_close(disjoint_mean(task_vectors, [1.0] * 3), expected)


def test_task_arithmetic_equals_pefts_at_any_weights(task_vectors):
    weights = [0.5, -0.2, 1.7]
    expected = merge_utils.task_arithmetic(task_vectors, torch.tensor(weights))
    torch.testing.assert_close(merge("task_arithmetic", task_vectors, weights), expected)


@pytest.mark.parametrize("density", [0.1, 0.37, 0.9])
def test_ties_equals_pefts_at_weights_of_one(task_vectors, density):
    expected = merge_utils.ties(task_vectors, torch.ones(3), density)
    torch.testing.assert_close(merge("ties", task_vectors, [1.0] * 3, density=density), expected)


@pytest.mark.parametrize("density", [0.1, 0.37])
def test_the_peft_variant_of_ties_equals_pefts_at_any_weights(task_vectors, density):
    weights = [0.5, -0.2, 1.7]
    expected = merge_utils.ties(task_vectors, torch.tensor(weights), density)
    merged = merge("ties", task_vectors, weights, density=density, variant="peft")
    torch.testing.assert_close(merged, expected)
    assert not torch.allclose(merge("ties", task_vectors, weights, density=density), expected)


@pytest.mark.usefixtures("our_masks")
def test_the_peft_variant_of_dare_ties_equals_pefts_at_any_weights(task_vectors):
    weights = [0.5, -0.2, 1.7]
    expected = merge_utils.dare_ties(task_vectors, torch.tensor(weights), 0.37)
    merged = merge("dare_ties", task_vectors, weights, density=0.37, variant="peft")
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, -0.2, 1.7]], ids=str)
@pytest.mark.usefixtures("our_masks")
def test_dare_linear_equals_pefts_at_any_weights(task_vectors, weights):
    expected = merge_utils.dare_linear(task_vectors, torch.tensor(weights), 0.37)
    torch.testing.assert_close(merge("dare_linear", task_vectors, weights, density=0.37), expected)


@pytest.mark.usefixtures("our_masks")
def test_dare_ties_equals_pefts_at_weights_of_one(task_vectors):
    expected = merge_utils.dare_ties(task_vectors, torch.ones(3), 0.37)
    torch.testing.assert_close(merge("dare_ties", task_vectors, [1.0] * 3, density=0.37), expected)
