import numpy as np
import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge.compiled import CompiledMagnitudes
from safemerge.merge.threshold import (
    MagnitudeCounts,
    Threshold,
    ThresholdCache,
    counts_of_magnitudes,
    found_in_bin,
    threshold_of_magnitudes,
)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_sorting(magnitudes, kept):
    """The definition: the last entry kept, by falling magnitude and then rising index."""
    values = magnitudes.tolist()
    order = sorted(range(len(values)), key=lambda at: (-values[at], at))
    last = order[kept - 1]
    return Threshold(values[last], last)


@pytest.mark.parametrize("step", [1, 64, 1e6, 1e-38], ids=str)
@pytest.mark.parametrize("kept", [1, 2, 100, 250, 499, 500])
def test_a_threshold_is_that_of_sorting(step, kept):
    magnitudes = normal(500).abs().mul(step).round().add(1.0)
    assert threshold_of_magnitudes(magnitudes, kept=kept) == by_sorting(magnitudes, kept)


@pytest.mark.parametrize("scale", [1e-44, 1e-40, 1.0, 1e37])
def test_magnitudes_of_any_size_are_counted(scale):
    magnitudes = (normal(300).abs() * scale).clamp_min(2.0**-149)
    for kept in (1, 17, 299):
        found = threshold_of_magnitudes(magnitudes, kept=kept)
        assert found == by_sorting(magnitudes, kept)


def test_more_kept_than_are_not_zero_is_a_threshold_of_zero():
    magnitudes = torch.tensor([0.0, 2.0, 0.0, 1e-45, 0.0])
    assert threshold_of_magnitudes(magnitudes, kept=2) == by_sorting(magnitudes, 2)
    assert threshold_of_magnitudes(magnitudes, kept=3) == Threshold(0.0, 4)
    assert threshold_of_magnitudes(torch.zeros(4), kept=1) == Threshold(0.0, 3)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(MergeError, match=r"keep between 1 entry and all 3; got 4"):
        threshold_of_magnitudes(torch.ones(3), kept=4)
    with pytest.raises(
        MergeError, match=r"here: entries must be finite; got 2 NaN or infinite of 3"
    ):
        counts_of_magnitudes(torch.tensor([1.0, float("nan"), float("inf")]), where="here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_compiled_counts_are_those_of_torch(dtype):
    pytest.importorskip("numba")
    base, model = (normal(40_000, seed=seed).to(dtype) for seed in range(2))
    model[:9000] = base[:9000]
    magnitudes = (model.float() - base.float()).abs()
    expected = counts_of_magnitudes(magnitudes)
    counts = CompiledMagnitudes(model, base).counts(where="here")
    assert all(np.array_equal(*pair) for pair in zip(counts, expected, strict=True))
    assert counts.num_entries == 40_000
    for wanted in (0, int(expected.bins[len(expected.bins) // 2])):
        found = CompiledMagnitudes(model, base).found_in_bin(wanted)
        for pair in zip(found, found_in_bin(magnitudes, wanted), strict=True):
            assert np.array_equal(*pair)


def test_counts_are_asked_for_once_and_kept():
    class Kept:
        asked, given = 0, {}

        def counts(self, expert, tensor):
            self.asked += 1
            return self.given.get((expert, tensor))

        def put_counts(self, expert, tensor, counts):
            self.given[expert, tensor] = counts

    kept = Kept()
    counts = MagnitudeCounts(np.array([3]), np.array([5]))
    ThresholdCache(kept=kept).put_counts("e", "t", counts)
    another = ThresholdCache(kept=kept)
    assert another.counts("e", "other") is None
    assert another.counts("e", "t") is another.counts("e", "t") is counts
    assert kept.asked == 2


def test_the_cache_holds_and_drops_the_least_recently_used():
    cache = ThresholdCache(max_entries=2)
    first, second, third = (Threshold(float(at), at) for at in range(3))
    cache.put("e", "t", 1, first)
    cache.put("e", "t", 2, second)
    assert cache.get("e", "t", 1) == first
    cache.put("e", "t", 3, third)
    assert len(cache) == 2
    assert cache.get("e", "t", 2) is None
    assert cache.get("e", "t", 1) == first
    assert cache.get("e", "t", 3) == third
    assert cache.get("f", "t", 3) is None
