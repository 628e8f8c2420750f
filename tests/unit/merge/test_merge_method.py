import pytest
import torch
from pydantic import TypeAdapter

from safemerge.config.method import METHODS
from safemerge.config.recipe import LayerGroup, Method
from safemerge.errors import MergeError
from safemerge.merge import ThresholdCache, elementwise, inputs, merge_tensor, sparsify
from safemerge.merge.coefficient import Coefficients, coefficients_for
from safemerge.merge.method import models_used

METHOD = TypeAdapter(Method)
NAME = "model.layers.0.mlp.up_proj.weight"


def method(name, **parameters):
    return METHOD.validate_python({"name": name, **parameters})


def tensors(*shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def merge(declared, base, experts, **options):
    return merge_tensor(declared, tensor=NAME, base=base, experts=experts, **options)


def test_the_table_has_every_method_of_the_recipe():
    declared = METHOD.json_schema()["discriminator"]["mapping"]
    assert set(METHODS) == set(declared)
    assert all(row.name == name for name, row in METHODS.items())
    assert all(row.source.variant.endswith(".") for row in METHODS.values())


def test_linear_is_the_weighted_mean_with_the_base_by_its_name():
    base, a, b = tensors(4, 4)
    weights = {"origin": 1.0, "a": 2.0, "b": 1.0}
    merged = merge(method("linear", weights=weights), base, {"a": a, "b": b}, base_name="origin")
    torch.testing.assert_close(merged, (base + 2 * a + b) / 4)
    plain = method("linear", weights=weights, normalize=False)
    merged = merge(plain, base, {"a": a, "b": b}, base_name="origin")
    torch.testing.assert_close(merged, base + 2 * a + b)


def test_linear_of_nothing_is_refused():
    base, a, _ = tensors(4, 4)
    nothing = method("linear", weights={"a": 0.0}, normalize=False)
    with pytest.raises(MergeError, match=rf"tensor '{NAME}': some weight must not be zero"):
        merge(nothing, base, {"a": a})


@pytest.mark.parametrize(("t", "end"), [(0.0, 1), (1.0, 2)])
def test_slerp_gives_its_ends_exactly_and_reads_only_them(t, end):
    ends = tensors(4, 4)
    declared = method("slerp", models=["a", "b"], t=t)
    name = ["", "a", "b"][end]
    merged = merge(declared, ends[0], {name: ends[end]})
    assert torch.equal(merged, ends[end])


def test_slerp_needs_two_models():
    base, *_ = tensors(4)
    given = inputs.TensorInputs(NAME, base, {}, Coefficients({}, {}), torch.float32)
    with pytest.raises(MergeError, match="slerp must have two models; got 0"):
        elementwise.merge_slerp(given)


def test_task_arithmetic_is_its_definition():
    base, a, b = tensors(6, 5)
    declared = method("task_arithmetic", weights={"a": 0.5, "b": -0.25}, **{"lambda": 1.5})
    expected = base + 1.5 * (0.5 * (a - base) - 0.25 * (b - base))
    torch.testing.assert_close(merge(declared, base, {"a": a, "b": b}), expected)


def test_layer_groups_choose_the_coefficient():
    base, a, _ = tensors(6, 5)
    weights = {"a": {"early": 1.0, "default": 0.0}}
    declared = method("task_arithmetic", weights=weights)
    groups = [LayerGroup(name="early", layers="0")]
    torch.testing.assert_close(merge(declared, base, {"a": a}, groups=groups), a)
    outside = merge_tensor(
        declared, tensor="model.norm.weight", base=base, experts={}, groups=groups
    )
    assert torch.equal(outside, base)


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "task_arithmetic", "linear"])
def test_runs_of_entries_join_up(name, monkeypatch):
    # NOTE: eighths give many task vector entries of equal magnitude.
    base, a, b = (tensor.mul(8).round().div(8) for tensor in tensors(77, 3))
    weights = {"a": 0.6, "b": 0.5}
    declared = method(name, weights=weights)
    whole = merge(declared, base, {"a": a, "b": b}, seed=4)
    monkeypatch.setattr(inputs, "_CHUNK_CPU", 10)
    assert torch.equal(merge(declared, base, {"a": a, "b": b}, seed=4), whole)


def test_arithmetic_is_float32_for_half_types():
    base, a, b = (tensor.bfloat16() for tensor in tensors(50, 50))
    declared = method("task_arithmetic", weights={"a": 0.5, "b": 0.25})
    exact = (
        base.double() + 0.5 * (a.double() - base.double()) + 0.25 * (b.double() - base.double())
    )
    merged = merge(declared, base, {"a": a, "b": b})
    assert (merged == exact.to(torch.bfloat16)).float().mean() > 0.999


def test_mixed_dtypes_are_merged_without_rounding_first():
    base, a, _ = tensors(20, 20)
    declared = method("task_arithmetic", weights={"a": 0.5})
    merged = merge(declared, base.bfloat16(), {"a": a}, dtype=torch.float32)
    torch.testing.assert_close(merged, base.bfloat16() + 0.5 * (a - base.bfloat16()))


def test_a_seed_chooses_the_random_masks():
    base, a, _ = tensors(20, 20)
    declared = method("dare_linear", weights={"a": 1.0}, density=0.5)
    first, again, other = (merge(declared, base, {"a": a}, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_thresholds_are_kept_by_expert_tensor_and_density(monkeypatch):
    base, a, b = tensors(20, 20)
    cache = ThresholdCache()
    declared = method("ties", weights={"a": 0.5, "b": 0.7}, density={"a": 0.5, "b": 0.2})
    first = merge(declared, base, {"a": a, "b": b}, thresholds=cache)
    assert len(cache) == 2
    monkeypatch.setattr(sparsify, "threshold_of_counts", None)
    other = method("ties", weights={"a": -1.5, "b": 0.7}, density={"a": 0.5, "b": 0.2})
    assert torch.equal(merge(declared, base, {"a": a, "b": b}, thresholds=cache), first)
    assert not torch.equal(merge(other, base, {"a": a, "b": b}, thresholds=cache), first)


def test_a_result_that_overflows_its_dtype_is_refused():
    base, a, _ = tensors(4, 4)
    declared = method("task_arithmetic", weights={"a": 1e6})
    words = rf"tensor '{NAME}': merged weights must be finite; got \d+ NaN or infinite of 16 as "
    with pytest.raises(MergeError, match=words + r"torch\.float16"):
        merge(declared, base.half(), {"a": a.half()})


@pytest.mark.parametrize(
    ("declared", "used"),
    [
        (method("linear", weights={"base": 1.0, "b": 0.5, "a": 0.0}), ("b", "base")),
        (method("slerp", models=["b", "a"], t=0.5), ("a", "b")),
        (method("slerp", models=["b", "a"], t=0.0), ("b",)),
        (method("slerp", models=["b", "a"], t=1.0), ("a",)),
        (method("ties", weights={"b": 1.0, "a": -0.5, "c": 0.0}), ("a", "b")),
        (method("task_arithmetic", weights={"a": 1.0}, **{"lambda": 0.0}), ()),
    ],
)
def test_only_models_with_a_coefficient_are_read(declared, used):
    assert models_used(declared, coefficients_for(declared, "default")) == used
