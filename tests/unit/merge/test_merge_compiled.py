import itertools

import pytest
import torch

from safemerge.errors import MergeError
from safemerge.merge import ThresholdCache, compiled, elementwise, merge_tensor
from safemerge.merge.coefficient import Coefficients
from safemerge.merge.compiled import Operand, Rule, code, merge_operands, over_parts
from safemerge.merge.inputs import TensorInputs
from safemerge.merge.mask import RankCache, ranks_in_rows
from safemerge.testing.conformance import build_method, random_tensor

pytest.importorskip("numba")
NAME = "model.layers.0.mlp.up_proj.weight"
ELEMENT_WISE = (
    "linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs",
    "breadcrumbs_ties", "consensus_ta", "model_stock", "della_linear", "della",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def in_torch(monkeypatch):
    """Switches the compiled path off, for a call."""

    def call(function, *rest, **named):
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "_loops", lambda: None)
            return function(*rest, **named)

    return call


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def merged(name, dtypes, size=5000, **fields):
    tensors = [random_tensor((size,), seed=seed) for seed in range(3)]
    base, first, second = (tensor.to(dtype) for tensor, dtype in zip(tensors, dtypes, strict=True))
    method = build_method(name, {"a": 0.7, "b": -0.4}, density=0.5, gamma=0.1)
    if name == "slerp":
        method = method.model_copy(update={"models": ("a", "b")})
    method = method.model_copy(update=fields)
    return merge_tensor(method, tensor=NAME, base=base, experts={"a": first, "b": second}, seed=3)


def close(first, second, dtype):
    """Equal, up to the last bit of a float32 sum."""
    if dtype == torch.float32:
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
    else:
        different = (first != second).float().mean()
        assert different < 1e-3
        torch.testing.assert_close(first, second, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_compiled_merges_are_those_of_torch(name, dtype, in_torch):
    in_loops = merged(name, [dtype] * 3)
    close(in_loops, in_torch(merged, name, [dtype] * 3), dtype)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["ties", "task_arithmetic", "consensus_ta"])
def test_any_number_of_experts_is_merged_as_in_torch(name, count, in_torch):
    base, *rest = (random_tensor((4000,), seed=seed) for seed in range(count + 1))
    experts = {f"e{at}": tensor for at, tensor in enumerate(rest)}
    weights = {expert: 0.5 - 0.3 * at for at, expert in enumerate(experts)}
    method = build_method(name, weights, density=0.7)
    call = {"tensor": NAME, "base": base, "experts": experts}
    close(merge_tensor(method, **call), in_torch(merge_tensor, method, **call), torch.float32)


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
@pytest.mark.parametrize(
    "fields", [{"variant": "peft"}, {"normalize": False}, {"divisor": "signed"}]
)
def test_compiled_variants_are_those_of_torch(name, fields, in_torch):
    dtypes = [torch.float32] * 3
    close(merged(name, dtypes, **fields), in_torch(merged, name, dtypes, **fields), dtypes[0])


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "della"])
def test_compiled_l1_rescaling_is_that_of_torch(name, in_torch):
    dtypes, size = [torch.bfloat16] * 3, 100_000
    in_loops = merged(name, dtypes, size, rescale="l1")
    close(in_loops, in_torch(merged, name, dtypes, size, rescale="l1"), torch.bfloat16)


def test_mixed_dtypes_are_those_of_torch(in_torch):
    for dtypes in itertools.product(DTYPES, repeat=3):
        in_loops = merged("ties", dtypes, 300)
        close(in_loops, in_torch(merged, "ties", dtypes, 300), dtypes[0])


@pytest.mark.parametrize("name", ELEMENT_WISE)
def test_any_number_of_threads_gives_the_same_bits(name, threads):
    results = []
    for count in (1, 2, 5):
        threads(count)
        results.append(merged(name, [torch.bfloat16] * 3, size=200_003))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_value_of_a_half_is_read_and_written_as_torch_does(dtype):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[torch.isfinite(every)]
    out = torch.empty_like(every)
    assert merge_operands([Operand(every, 1.0, "a")], Rule(code.SUM), base=None, out=out)
    assert torch.equal(out.view(torch.int16), every.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_is_rounded_to_nearest_even_as_torch_does(dtype):
    ties = torch.arange(1 << 16, dtype=torch.int32) << 8 | 0x3F800000
    values = torch.cat([ties.view(torch.float32), random_tensor((70_000,), seed=4)])
    out = torch.empty(values.shape, dtype=dtype)
    merge_operands([Operand(values, 1.0, "a")], Rule(code.SUM), base=None, out=out)
    assert torch.equal(out, values.to(dtype))


def test_a_result_that_overflows_is_told():
    values = torch.full((5000,), 1e38)
    values[4321] = 3e38
    for dtype, fine in ((torch.float32, True), (torch.float16, False)):
        out = torch.empty(5000, dtype=dtype)
        operands = [Operand(values, 1.0, "a")]
        assert merge_operands(operands, Rule(code.SUM), base=None, out=out) is fine


@pytest.mark.parametrize(("weight", "lambda_"), [(1.0, 1e39), (1e39, 1.0)])
def test_a_number_beyond_float32_is_refused_by_its_result(weight, lambda_):
    base, expert = (random_tensor((50,), seed=seed) for seed in range(2))
    method = build_method("task_arithmetic", {"a": weight}, **{"lambda": lambda_})
    with pytest.raises(MergeError, match="merged weights must be finite"):
        merge_tensor(method, tensor=NAME, base=base, experts={"a": expert})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["ties", "dare_ties", "breadcrumbs", "task_arithmetic"])
def test_one_broken_entry_of_many_is_found(name, value):
    base, expert = (random_tensor((300, 300), seed=seed) for seed in range(2))
    expert[259, 77] = value
    method = build_method(name, {"a": 1.0}, density=0.1)
    with pytest.raises(MergeError, match=r"got 1 NaN or infinite of 90000"):
        merge_tensor(method, tensor=NAME, base=base, experts={"a": expert})


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_counts_held_between_candidates_change_no_bit(name, dtype):
    base, first = (random_tensor((70_000,), seed=seed, dtype=dtype) for seed in range(2))
    cache = ThresholdCache()
    for density in (0.2, 0.21, 0.9):
        method = build_method(name, {"a": 1.0}, density=density)
        call = {"tensor": NAME, "base": base, "experts": {"a": first}}
        with_counts = merge_tensor(method, thresholds=cache, **call)
        assert torch.equal(with_counts, merge_tensor(method, **call))
    cache.forget()
    assert len(cache) == 0
    assert cache.counts("a", NAME).num_entries == 70_000


@pytest.mark.parametrize("name", ["dare_linear", "della_linear", "della"])
@pytest.mark.parametrize("rescale", ["probability", "l1"])
def test_ranks_and_ratios_held_between_candidates_change_no_bit(name, rescale, monkeypatch):
    base, first = (random_tensor((90, 700), seed=seed) for seed in range(2))
    cache, found = ThresholdCache(), []

    def ranked(*rest, **named):
        found.append(1)
        return ranks_in_rows(*rest, **named)

    for density in (0.5, 0.6, 0.5):
        method = build_method(name, {"a": 1.0}, density=density)
        method = method.model_copy(update={"rescale": rescale})
        call = {"tensor": NAME, "base": base, "experts": {"a": first}, "seed": 2}
        expected = merge_tensor(method, **call)
        with monkeypatch.context() as patch:
            patch.setattr(compiled, "ranks_in_rows", ranked)
            assert torch.equal(merge_tensor(method, thresholds=cache, **call), expected)
    assert len(found) == (0 if name == "dare_linear" else 1), "one sort serves all candidates"


def test_ranks_are_those_of_a_stable_sort_and_more_than_fit_are_not_held():
    base = torch.zeros(3, 4)
    model = torch.tensor([[1.0, -3, 2, 1], [0, 0, 0, 0], [-1, 2, -2, 4]])
    found = ranks_in_rows(model, base, num_columns=4)
    assert found.reshape(3, 4).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3], [3, 1, 2, 0]]
    cache = RankCache(max_bytes=30)
    for name in ("first", "second"):
        cache.put(name, found)
    assert cache.get("first") is found
    assert cache.get("second") is None, "24 bytes each"


@pytest.mark.parametrize("count", [0, 1, 40_000, 1_000_000])
def test_parts_cover_a_range_in_order(count, threads):
    for number in (1, 3):
        threads(number)
        parts = over_parts(lambda start, stop: (start, stop), count)
        entries = [at for start, stop in parts for at in (start, stop)]
        assert entries == sorted(entries)
        assert sum(stop - start for start, stop in parts) == count


def test_what_is_not_known_is_not_compiled():
    assert compiled._is_compiled(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16))
    assert not compiled._is_compiled(torch.zeros(2, dtype=torch.float64))
    assert not compiled._is_compiled(torch.zeros(2, device="meta"))


def test_without_numba_torch_does_the_work(monkeypatch):
    expected = merged("ties", [torch.float32] * 3)
    assert compiled.prepare()
    monkeypatch.setattr(compiled, "_loops", lambda: None)
    assert not compiled.prepare()
    close(merged("ties", [torch.float32] * 3), expected, torch.float32)


@pytest.mark.parametrize("name", ["linear", "ties", "della", "karcher", "tsv_m", "wudi"])
def test_a_result_is_written_where_it_is_asked_for(name):
    base, first, second = (random_tensor((6, 4), seed=seed) for seed in range(3))
    call = {"tensor": NAME, "base": base, "experts": {"a": first, "b": second}}
    method = build_method(name, {"a": 0.5, "b": 0.5}, density=0.5)
    out = torch.full((6, 4), 9.0)
    assert merge_tensor(method, out=out, **call) is out
    assert torch.equal(out, merge_tensor(method, **call))
    with pytest.raises(MergeError, match=r"destination must be contiguous, \(6, 4\) of"):
        merge_tensor(method, out=torch.zeros(4, 6).T, **call)


def test_an_unknown_rule_is_an_error_and_never_another_one():
    base, first = (random_tensor((40,), seed=seed) for seed in range(2))
    with pytest.raises(MergeError, match="one of the numbers of `code`; got 99"):
        merge_operands([Operand(first, 1.0, "a")], Rule(99), base=base, out=torch.empty(40))


def test_a_rescaled_trim_keeps_the_l1_norm_on_both_paths():
    base, expert = (random_tensor((400,), seed=seed) for seed in range(2))
    update = expert - base
    for name in ("breadcrumbs", "ties"):
        method = build_method(name, {"a": 1.0}, density=0.3)
        method = method.model_copy(update={"rescale": "l1"})
        found = merge_tensor(method, tensor=NAME, base=base, experts={"a": expert}) - base
        torch.testing.assert_close(found.abs().sum(), update.abs().sum(), rtol=1e-5, atol=1e-4)
        assert int((found.abs() > 1e-6).sum()) == 120


def test_a_consensus_without_a_loop_is_combined_in_torch_and_never_by_another_one(monkeypatch):
    def largest(inputs, task_vectors, weights):
        return torch.stack(task_vectors).amax(dim=0)

    monkeypatch.setitem(elementwise.CONSENSUS, "largest", largest)
    base, first, second = (random_tensor((5000,), seed=seed) for seed in range(3))
    found = elementwise.merge_task_vectors(
        given(base, a=first, b=second), sparsify="none", consensus="largest"
    )
    torch.testing.assert_close(found, torch.maximum(first, second), rtol=1e-5, atol=1e-5)
    with pytest.raises(MergeError, match=r"must be one of sum, .*largest; got 'smallest'"):
        elementwise.merge_task_vectors(given(base, a=first), sparsify="none", consensus="smallest")


def given(base, **experts):
    weights = dict.fromkeys(experts, 1.0)
    return TensorInputs(
        tensor=NAME,
        base=base,
        experts=experts,
        coefficients=Coefficients(weights=weights, density={}),
        dtype=torch.float32,
    )
