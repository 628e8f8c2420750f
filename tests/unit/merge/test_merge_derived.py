import numpy as np
import pytest
import torch

from safemerge.cache import cache_dir
from safemerge.config.recipe import MergeRecipe
from safemerge.merge import ResidentCheckpoints, matrix
from safemerge.merge.compiled import CompiledMagnitudes
from safemerge.merge.derived import DerivedData
from safemerge.merge.spectrum import Spectrum, SpectrumCache
from safemerge.merge.threshold import MagnitudeCounts
from safemerge.testing.conformance import build_method
from safemerge.weights import fingerprint

COUNTS = MagnitudeCounts(np.array([3, 900]), np.array([2, 5]))


def derived(**digests):
    return DerivedData.of({"base": "b0", "math": "m0", "safety": "s0", **digests}, "base")


def test_counts_are_found_by_content_not_by_name():
    derived().put_counts("math", "t", COUNTS)
    found = derived(safety="m0").counts("safety", "t")
    assert all(np.array_equal(*pair) for pair in zip(found, COUNTS, strict=True))
    for other in (derived(math="m1"), derived(base="b1")):
        assert other.counts("math", "t") is None
    assert derived().counts("math", "other") is None


def test_without_a_digest_nothing_is_kept():
    assert derived(math=None) is None


def test_spectra_come_back_as_they_were():
    spectra = tuple(
        Spectrum(torch.randn(4, rank), torch.rand(rank), torch.randn(6, rank).T) for rank in (2, 0)
    )
    derived().put_spectra(("tsv_m", "math", "safety"), "t", spectra)
    found = derived().spectra(("tsv_m", "math", "safety"), "t")
    for one, other in zip(found, spectra, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert derived().spectra(("tsv_m", "safety", "math"), "t") is None


@pytest.mark.parametrize("content", [b"", b"no tensors", bytes(100)])
def test_an_entry_that_is_no_tensors_counts_as_missing(content):
    kept = derived()
    kept.put_counts("math", "t", COUNTS)
    (entry,) = (cache_dir() / "derived").iterdir()
    kept.cache.put(entry.stem, content)
    assert kept.counts("math", "t") is None
    kept.put_counts("math", "t", COUNTS)
    assert kept.counts("math", "t") is not None


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [("ties", CompiledMagnitudes, "counts"), ("tsv_m", matrix, "_orthogonalised")],
)
def test_another_process_derives_nothing_again(
    name, module, function, tiny_base, tiny_experts, monkeypatch
):
    paths = {"base": tiny_base, **tiny_experts}
    refs = [
        {"name": model, "path": str(path), "digest": fingerprint(path)}
        for model, path in paths.items()
    ]

    def merged(density):
        method = build_method(name, {"math": 0.6, "safety": 0.4}, density=density).resolved()
        document = {"base": refs[0], "experts": refs[1:], "method": method}
        recipe = MergeRecipe.model_validate(document)
        return dict(ResidentCheckpoints.open(recipe, check=False).merged(recipe))

    def never(*_, **__):
        raise AssertionError("derived again")

    first, other = merged(0.5), merged(0.3)
    monkeypatch.setattr(module, function, never)
    for tensors, density in ((first, 0.5), (other, 0.3)):
        again = merged(density)
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())
    if name == "ties":
        assert any(not torch.equal(first[key], other[key]) for key in first)


def test_spectra_from_disk_are_given_and_held_where_they_are_merged():
    triplets = Spectrum(torch.ones(3, 1), torch.ones(1), torch.ones(1, 2))

    class OnDisk:
        """What files hold comes to the CPU."""

        def spectra(self, what, tensor):
            return (triplets,)

        def put_spectra(self, what, tensor, spectra):
            raise AssertionError("nothing is put")

    cache = SpectrumCache(kept=OnDisk())
    for _ in range(2):  # from disk, then from memory
        (found,) = cache.get(("tsv_m", "a"), "x.weight", device="meta")
        assert {part.device.type for part in found} == {"meta"}
    (held,) = SpectrumCache(kept=OnDisk()).get(("tsv_m", "a"), "x.weight", device="cpu")
    assert all(one is other for one, other in zip(held, triplets, strict=True))
