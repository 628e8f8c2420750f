"""Matrix methods against their definitions in float64, by other formulas than the package's."""

import pytest
import torch
from pydantic import TypeAdapter

from safemerge.config.recipe import Method
from safemerge.merge import SpectrumCache, matrix, merge_tensor
from safemerge.merge.interference import least_interference, reduce_interference
from safemerge.merge.spectrum import Spectrum, decompose, nearest_orthonormal

pytestmark = pytest.mark.reference

METHOD = TypeAdapter(Method)
NAME = "model.layers.0.mlp.up_proj.weight"
WEIGHTS = {"a": 0.7, "b": 0.4, "c": -0.6}
SHAPES = [(12, 8), (7, 13)]


def models(shape, count=4):
    generator = torch.Generator().manual_seed(13)
    stack = [torch.randn(shape, generator=generator) for _ in range(count)]
    return stack[0], dict(zip("abc", stack[1:], strict=True))


def merged(name, base, experts, *, tensor=NAME, spectra=None, **parameters):
    method = METHOD.validate_python({"name": name, **parameters})
    return merge_tensor(method, tensor=tensor, base=base, experts=experts, spectra=spectra)


def updates(base, experts, weights=WEIGHTS):
    return [weights[name] * (experts[name].double() - base.double()) for name in weights]


def polar(matrix):
    """The nearest orthonormal matrix by Newton's iteration for the polar factor, not by SVD."""
    transposed = matrix.shape[0] < matrix.shape[1]
    factor = matrix.T if transposed else matrix
    gram = factor.T @ factor
    values, vectors = torch.linalg.eigh(gram)
    factor = factor @ (vectors / values.sqrt()) @ vectors.T
    return factor.T if transposed else factor


def close(found, expected, tolerance=2e-4):
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_tsv_m_is_its_definition(shape):
    base, experts = models(shape)
    per_task = min(shape) // 3
    lefts, values, rights = [], [], []
    for update in updates(base, experts, dict.fromkeys(WEIGHTS, 1.0)):
        left, value, right = torch.linalg.svd(update, full_matrices=False)
        lefts.append(left[:, :per_task])
        values.append(value[:per_task])
        rights.append(right[:per_task])
    scaled = [weight * value for weight, value in zip(WEIGHTS.values(), values, strict=True)]
    left, right = polar(torch.cat(lefts, dim=1)), polar(torch.cat(rights, dim=0))
    expected = base.double() + 1.2 * left @ torch.diag(torch.cat(scaled)) @ right
    close(merged("tsv_m", base, experts, weights=WEIGHTS, **{"lambda": 1.2}), expected)


def test_tsv_m_keeps_its_factors_for_other_weights(monkeypatch):
    base, experts = models((12, 8))
    cache = SpectrumCache()
    first = merged("tsv_m", base, experts, weights=WEIGHTS, spectra=cache)
    assert len(cache) == 1
    assert cache.num_bytes > 0
    monkeypatch.setattr(matrix, "decompose", None)
    again = merged("tsv_m", base, experts, weights=WEIGHTS, spectra=cache)
    assert torch.equal(first, again)
    other = {**WEIGHTS, "a": -0.1}
    warm = merged("tsv_m", base, experts, weights=other, spectra=cache)
    monkeypatch.undo()
    assert torch.equal(warm, merged("tsv_m", base, experts, weights=other))


def test_a_full_cache_takes_no_more_and_changes_nothing():
    base, experts = models((12, 8))
    cache = SpectrumCache(max_bytes=10)
    found = merged("tsv_m", base, experts, weights=WEIGHTS, spectra=cache)
    assert len(cache) == 0
    assert torch.equal(found, merged("tsv_m", base, experts, weights=WEIGHTS))


@pytest.mark.parametrize("name", ["tsv_m", "iso_cts", "wudi"])
def test_an_expert_without_change_here_does_not_count(name):
    base, experts = models((12, 8))
    with_frozen = {**experts, "c": base.clone()}
    found = merged(name, base, with_frozen, weights=WEIGHTS)
    alone = merged(name, base, experts, weights={key: WEIGHTS[key] for key in "ab"})
    assert torch.equal(found, alone)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_iso_c_is_its_definition(shape):
    base, experts = models(shape)
    total = sum(updates(base, experts))
    nuclear = torch.linalg.matrix_norm(total, "nuc")
    expected = base.double() + 0.9 * nuclear / min(shape) * polar(total)
    close(merged("iso_c", base, experts, weights=WEIGHTS, **{"lambda": 0.9}), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_iso_cts_is_its_definition(share, shape):
    base, experts = models(shape)
    rank, parts = min(shape), updates(base, experts)
    per_task = min(round((rank - int(share * rank)) / 3), rank // 3)
    common = rank - 3 * per_task
    left, values, right = torch.linalg.svd(sum(parts), full_matrices=False)
    lefts, spectrum, rights = [left[:, :common]], [values[:common]], [right[:common]]
    outside = torch.eye(shape[0], dtype=torch.float64) - lefts[0] @ lefts[0].T
    for part in parts:
        own_left, own_values, own_right = torch.linalg.svd(outside @ part, full_matrices=False)
        lefts.append(own_left[:, :per_task])
        spectrum.append(own_values[:per_task])
        rights.append(own_right[:per_task])
    scale = torch.cat(spectrum).mean()
    joined = polar(torch.cat(lefts, dim=1)) @ polar(torch.cat(rights, dim=0))
    found = merged("iso_cts", base, experts, weights=WEIGHTS, common_share=share)
    close(found, base.double() + scale * joined)


def interference(candidate, parts):
    return sum(
        ((candidate - part) @ part.T).square().sum() / part.square().sum() for part in parts
    )


def test_wudi_takes_the_papers_steps():
    base, experts = models((6, 5))
    parts = [part.float() for part in updates(base, experts)]
    point = torch.nn.Parameter(sum(parts).clone())
    adam = torch.optim.Adam([point], lr=1e-2)
    for _ in range(25):
        adam.zero_grad()
        interference(point, parts).backward()
        adam.step()
    found = reduce_interference(torch.stack(parts), num_steps=25, learning_rate=1e-2)
    close(found, point.detach().double(), tolerance=1e-4)
    method = {"num_steps": 25, "learning_rate": 1e-2, "weights": WEIGHTS}
    close(merged("wudi", base, experts, **method), base.double() + found.double())


def test_the_exact_wudi_is_the_minimum():
    base, experts = models((6, 5))
    parts = updates(base, experts)
    best = least_interference(torch.stack([part.float() for part in parts])).double()
    lowest = float(interference(best, parts))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        nearby = best + 0.01 * torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert float(interference(nearby, parts)) > lowest
    stepped = reduce_interference(
        torch.stack([part.float() for part in parts]), num_steps=4000, learning_rate=1e-3
    )
    gap = float(interference(sum(parts), parts)) - lowest
    assert 0.0 <= float(interference(stepped.double(), parts)) - lowest < 1e-3 * gap
    found = merged("wudi", base, experts, weights=WEIGHTS, solver="exact")
    close(found, base.double() + best)


def test_the_exact_wudi_leaves_what_no_expert_reads():
    first = torch.zeros(3, 4)
    first[:, 0] = torch.tensor([1.0, 2.0, 3.0])
    second = torch.zeros(3, 4)
    second[:, 1] = torch.tensor([1.0, 0.0, 1.0])
    close(least_interference(torch.stack([first, second])), (first + second).double(), 1e-6)


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "wudi"])
@pytest.mark.parametrize(
    ("tensor", "shape"),
    [("model.embed_tokens.weight", (12, 8)), ("lm_head.weight", (12, 8)), (NAME, (9,))],
)
def test_tables_and_vectors_are_averaged(name, tensor, shape):
    base, experts = models(shape)
    expected = base.double() + sum(updates(base, experts)) / 3
    close(merged(name, base, experts, tensor=tensor, weights=WEIGHTS), expected, 1e-5)


def test_tables_are_merged_as_matrices_when_asked():
    base, experts = models((12, 8))
    table = "model.embed_tokens.weight"
    asked = merged("iso_c", base, experts, tensor=table, weights=WEIGHTS, embeddings="matrix")
    assert torch.equal(asked, merged("iso_c", base, experts, weights=WEIGHTS))


def test_a_spectrum_ends_at_the_numerical_rank():
    generator = torch.Generator().manual_seed(1)
    low = torch.randn(9, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    spectrum = decompose(low)
    assert len(spectrum.values) == 2
    close(spectrum.matrix(), low.double(), 1e-5)
    empty = decompose(torch.zeros(4, 3))
    assert isinstance(empty, Spectrum)
    assert [tuple(part.shape) for part in empty] == [(4, 0), (0,), (0, 3)]


def test_the_nearest_orthonormal_matrix_has_orthonormal_columns():
    matrix = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    factor = nearest_orthonormal(matrix)
    close(factor.T @ factor, torch.eye(4, dtype=torch.float64), 1e-5)
    close(factor, polar(matrix.double()), 1e-5)
