"""The straight line between two checkpoints."""

import torch

from safemerge.config.checkpoint import CheckpointRef, Neighbours, interpolated
from safemerge.config.recipe import MergeRecipe
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.weights.checkpoint import DenseCheckpoint
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.interpolated import InterpolatedCheckpoint


def ref(name, folder):
    return CheckpointRef(name=name, path=str(folder), digest=fingerprint(folder))


def recipe(base, *experts, method=None):
    weights = {expert.name: 0.5 for expert in experts}
    document = method or {"name": "task_arithmetic", "weights": weights}
    return MergeRecipe(base=base, experts=list(experts), method=document, dtype="float32")


def merged(resident, of):
    return dict(resident.merged(of))


def test_a_tensor_is_on_the_line(tiny_experts):
    low, high = (DenseCheckpoint(path) for path in list(tiny_experts.values())[:2])
    line = InterpolatedCheckpoint(low, high, 0.25)
    assert line.names == low.names
    for name in line.names:
        expected = 0.75 * low.tensor(name).double() + 0.25 * high.tensor(name).double()
        assert line.dtype(name) == line.tensor(name).dtype == torch.float32
        torch.testing.assert_close(line.tensor(name).double(), expected, rtol=1e-6, atol=1e-7)


def test_a_merge_over_a_line_is_the_merge_over_both_ends(tiny_base, tiny_experts):
    base = ref("base", tiny_base)
    first, second = (ref(name, path) for name, path in list(tiny_experts.items())[:2])
    line = interpolated("line", Neighbours(low=first, high=second, share=0.25))
    # A linear method cannot tell a line from both of its ends with parts of its weight.
    ends = {first.name: 0.375, second.name: 0.125}
    apart = recipe(base, first, second, method={"name": "task_arithmetic", "weights": ends})
    along = recipe(base, line)

    resident = ResidentCheckpoints.open(apart, grows=True)
    expected, found = merged(resident, apart), merged(resident, along)
    alone = merged(ResidentCheckpoints.open(along), along)

    assert along.digest != apart.digest
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(found[name], alone[name])


def test_another_place_on_the_line_trims_other_entries(tiny_base, tiny_experts):
    base = ref("base", tiny_base)
    first, second = (ref(name, path) for name, path in list(tiny_experts.items())[:2])
    resident = ResidentCheckpoints.open(recipe(base, first, second), grows=True)
    ties = {"name": "ties", "weights": {"line": 1.0}, "density": 0.2}

    def at(share):
        line = interpolated("line", Neighbours(low=first, high=second, share=share))
        return merged(resident, recipe(base, line, method=ties))

    once, between, again = at(0.0), at(0.6), at(0.0)
    plain = {"name": "ties", "weights": {first.name: 1.0}, "density": 0.2}
    expected = merged(resident, recipe(base, first, method=plain))
    assert any(not torch.equal(once[name], between[name]) for name in once)
    for name, tensor in once.items():
        assert torch.equal(tensor, again[name])
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
