"""Conformance cases: what every merge method must obey, those of other packages too.

A test subclasses `MergeMethodCases`, or, if the method measures task vectors from the base,
`TaskVectorMethodCases` or `WeightedMethodCases`, the latter if each expert has a weight. It gives
the one fixture `method_name`, and inherits the rest::

    class TestMyMean(WeightedMethodCases):
        @pytest.fixture
        def method_name(self) -> str:
            return "my_mean"
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from safemerge.config.method import AnyMethod, method_row
from safemerge.config.recipe import MergeRecipe, Method
from safemerge.errors import MergeError
from safemerge.merge import merge_tensor, merged_tensors
from safemerge.testing.statistics import random_statistics, write_statistics
from safemerge.weights import ModelStatistics, open_checkpoint
from safemerge.weights.checkpoint import CONFIG_FILE, INDEX_FILE, SINGLE_FILE

_METHOD: TypeAdapter[Method] = TypeAdapter(Method)
_NAMES = ("model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight")
_SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (0, 4)]


def build_method(name: str, weights: dict[str, float], **parameters: object) -> AnyMethod:
    """Return a method's declaration with sensible values for what is not given.

    Args:
        name: Machine name of the method.
        weights: Weight by model name. For slerp, the models: the last one is at t = 1.
        **parameters: Further fields by YAML key, e.g. ``density=0.5``; those that the method
            does not have are left out.

    Returns:
        A member of the `Method` union.
    """
    spec = method_row(name).spec
    known = {field.alias or key for key, field in spec.model_fields.items()}
    document: dict[str, Any] = {"name": name}
    if "weights" in known:
        document["weights"] = weights
    if name in ("model_stock", "sce", "ram"):
        document["models"] = list(weights)
    if name in ("arcee_fusion", "nearswap", "passthrough"):
        document["models"] = [max(weights)]
    if name == "nuslerp" and len(weights) == 1:
        document["weights"] = {"base": 0.0, **weights}
    if name == "consensus_ta":
        document["min_agreeing"] = min(2, len(weights))
    if name == "nearswap":
        document["t"] = 1.0
    elif "t" in known:
        names = list(weights) if len(weights) > 1 else ["base", *weights]
        document["models"] = names
        document["t"] = 1.0 if len(weights) == 1 else 0.5
    if parameters.get("density") == 0.5 and {"density", "epsilon"} <= known:
        document["epsilon"] = 0.2
    document.update({key: value for key, value in parameters.items() if key in known})
    return _METHOD.validate_python(document)


def random_tensor(
    shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return a seeded normal tensor.

    Args:
        shape: Any shape.
        seed: Seed of the entries.
        dtype: Float dtype of the result.

    Returns:
        New tensor on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def merge_measured(
    method: AnyMethod,
    *,
    tensor: str,
    base: torch.Tensor,
    experts: Mapping[str, torch.Tensor],
    **options: Any,
) -> torch.Tensor:
    """Merge one tensor; a method that needs statistics of its models gets stand-ins for them.

    Args:
        method: A method's declaration.
        tensor: Tensor name.
        base: The base's tensor.
        experts: The experts' tensors by name.
        **options: Further arguments of `merge_tensor`.

    Returns:
        The merged tensor.
    """
    needed = method.model_names() if method.statistic is not None else ()
    statistics = random_statistics(tensor, tuple(base.shape), needed)
    return merge_tensor(
        method, tensor=tensor, base=base, experts=experts, statistics=statistics, **options
    )


class MergeMethodCases:
    """Cases for every merge method."""

    @pytest.fixture
    def method_name(self) -> str:
        """Machine name of the method under test; the one thing a subclass gives."""
        raise NotImplementedError

    returns_one_expert = True
    """Whether one expert at full weight is the result; some methods change even that."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_one_expert_at_full_weight_is_returned(
        self, method_name: str, dtype: torch.dtype
    ) -> None:
        """Weight 1, lambda 1, density 1: the expert, up to one rounding of the sum."""
        base = random_tensor((16, 8), seed=0, dtype=dtype)
        expert = base + random_tensor((16, 8), seed=1, dtype=dtype) * 0.1
        method = build_method(method_name, {"a": 1.0}, density=1.0)
        merged = merge_measured(method, tensor=_NAMES[0], base=base, experts={"a": expert})
        is_same = torch.allclose(merged, expert, rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert is_same == self.returns_one_expert, (merged - expert).abs().max()

    def test_order_of_experts_changes_nothing(self, method_name: str) -> None:
        """Equal weights, listed either way, give the same bits."""
        base, first, second = (random_tensor((33, 5), seed=seed) for seed in range(3))
        forth = merge_measured(
            build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5),
            tensor=_NAMES[0],
            base=base,
            experts={"a": first, "b": second},
        )
        back = merge_measured(
            build_method(method_name, {"b": 0.5, "a": 0.5}, density=0.5),
            tensor=_NAMES[0],
            base=base,
            experts={"b": second, "a": first},
        )
        torch.testing.assert_close(forth, back, rtol=0.0, atol=0.0)

    def test_inputs_are_unchanged_and_not_shared(self, method_name: str) -> None:
        """The result is new memory and writing to it leaves the inputs alone."""
        tensors = [random_tensor((9, 4), seed=seed) for seed in range(3)]
        copies = [tensor.clone() for tensor in tensors]
        merged = merge_measured(
            build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5),
            tensor=_NAMES[0],
            base=tensors[0],
            experts={"a": tensors[1], "b": tensors[2]},
        )
        merged.fill_(7.0)
        for tensor, copy in zip(tensors, copies, strict=True):
            assert torch.equal(tensor, copy)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("shape", _SHAPES, ids=str)
    def test_shape_dtype_and_device_are_kept(
        self, method_name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """Whatever the shape, scalars and empty tensors included."""
        base, first, second = (random_tensor(shape, seed=seed, dtype=dtype) for seed in range(3))
        merged = merge_measured(
            build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5),
            tensor=_NAMES[0],
            base=base,
            experts={"a": first, "b": second},
        )
        assert (merged.shape, merged.dtype, merged.device) == (base.shape, dtype, base.device)

    def test_order_of_tensors_changes_nothing(self, method_name: str) -> None:
        """With one seed a tensor's result does not depend on what was merged before."""
        base, first, second = (random_tensor((40, 3), seed=seed) for seed in range(3))
        method = build_method(method_name, {"a": 0.7, "b": 0.4}, density=0.5)

        def merged(names: tuple[str, ...]) -> dict[str, torch.Tensor]:
            experts = {"a": first, "b": second}
            return {
                name: merge_measured(method, tensor=name, base=base, experts=experts, seed=3)
                for name in names
            }

        forth, back = merged(_NAMES), merged(_NAMES[::-1])
        for name in _NAMES:
            assert torch.equal(forth[name], back[name])

    def test_sharded_checkpoints_give_the_whole_ones_merge(
        self, method_name: str, tmp_path: Path
    ) -> None:
        """Which file a tensor lies in changes nothing."""
        whole = [_write_checkpoint(tmp_path / name, seed=at) for at, name in enumerate("xab")]
        shards = [_sharded_copy(folder, tmp_path / f"{folder.name}-shards") for folder in whole]
        method = build_method(method_name, {"a": 0.7, "b": 0.4}, density=0.5)
        measured = {
            name: write_statistics(tmp_path / f"{name}-measured", folder, model=name)
            for name, folder in zip("ab", whole[1:], strict=True)
            if method.statistic is not None
        }
        statistics = {name: ModelStatistics(folder) for name, folder in measured.items()}
        results = []
        for folders in (whole, shards):
            recipe = _recipe(method, folders, measured)
            checkpoints = {ref.name: open_checkpoint(ref.path or "") for ref in recipe.checkpoints}
            results.append(dict(merged_tensors(recipe, checkpoints, statistics=statistics)))
        assert results[0].keys() == results[1].keys()
        for name, tensor in results[0].items():
            assert torch.equal(tensor, results[1][name])

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_an_entry_that_is_not_finite_raises(self, method_name: str, value: float) -> None:
        """A broken expert is refused, with the tensor's name."""
        base, first, second = (random_tensor((6, 6), seed=seed) for seed in range(3))
        second[2, 3] = value
        method = build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5)
        with pytest.raises(MergeError, match="must be finite"):
            merge_measured(method, tensor=_NAMES[0], base=base, experts={"a": first, "b": second})

    def test_an_expert_of_another_shape_raises(self, method_name: str) -> None:
        """Shapes are never broadcast."""
        base = random_tensor((6, 6), seed=0)
        experts = {"a": random_tensor((6, 6), seed=1), "b": random_tensor((1, 6), seed=2)}
        method = build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5)
        with pytest.raises(MergeError, match=r"base \(6, 6\), expert 'b' \(1, 6\)"):
            merge_measured(method, tensor=_NAMES[0], base=base, experts=experts)

    def test_a_missing_expert_raises(self, method_name: str) -> None:
        """An expert with weight is never skipped."""
        base = random_tensor((6, 6), seed=0)
        method = build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5)
        with pytest.raises(MergeError, match="got no 'b'"):
            merge_measured(method, tensor=_NAMES[0], base=base, experts={"a": base.clone()})

    def test_result_takes_the_asked_dtype(self, method_name: str) -> None:
        """Rounded once, to nearest, from the float32 result."""
        base, first, second = (random_tensor((12, 6), seed=seed) for seed in range(3))
        method = build_method(method_name, {"a": 0.5, "b": 0.5}, density=0.5)
        experts = {"a": first, "b": second}
        full = merge_measured(method, tensor=_NAMES[0], base=base, experts=experts)
        rounded = merge_measured(
            method, tensor=_NAMES[0], base=base, experts=experts, dtype=torch.bfloat16
        )
        assert torch.equal(rounded, full.to(torch.bfloat16))


class TaskVectorMethodCases(MergeMethodCases):
    """Further cases for methods that add a merged task vector to the base."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_lambda_zero_returns_the_base_bit_for_bit(
        self, method_name: str, dtype: torch.dtype
    ) -> None:
        """Nothing is added, not even a rounding."""
        base, first, second = (random_tensor((8, 8), seed=seed, dtype=dtype) for seed in range(3))
        base[0, 0] = -0.0
        method = build_method(method_name, {"a": 0.5, "b": 0.9}, density=0.5, **{"lambda": 0.0})
        experts = {"a": first, "b": second}
        merged = merge_measured(method, tensor=_NAMES[0], base=base, experts=experts)
        assert torch.equal(merged, base)
        assert torch.equal(merged.signbit(), base.signbit())
        unread = merge_measured(method, tensor=_NAMES[0], base=base, experts={})
        assert torch.equal(unread, base)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_zero_task_vectors_give_the_base(self, method_name: str, dtype: torch.dtype) -> None:
        """Experts that are the base change nothing, whatever their weights."""
        base = random_tensor((8, 8), seed=0, dtype=dtype)
        method = build_method(method_name, {"a": 0.3, "b": -1.7}, density=0.5, **{"lambda": 1.3})
        experts = {"a": base.clone(), "b": base.clone()}
        merged = merge_measured(method, tensor=_NAMES[0], base=base, experts=experts)
        assert torch.equal(merged, base)


class WeightedMethodCases(TaskVectorMethodCases):
    """Further cases for such methods that weigh each expert."""

    def test_an_expert_of_weight_zero_may_be_missing(self, method_name: str) -> None:
        """It takes no part, so its weights need not be read."""
        base, first = (random_tensor((8, 8), seed=seed) for seed in range(2))
        both = build_method(method_name, {"a": 0.5, "b": 0.0}, density=0.5, min_agreeing=1)
        alone = build_method(method_name, {"a": 0.5}, density=0.5)
        with_zero = merge_measured(both, tensor=_NAMES[0], base=base, experts={"a": first})
        without = merge_measured(alone, tensor=_NAMES[0], base=base, experts={"a": first})
        assert torch.equal(with_zero, without)

    def test_a_negative_weight_negates(self, method_name: str) -> None:
        """With weight -1 the base moves away from the expert by what +1 moves it towards."""
        base, expert = (random_tensor((8, 8), seed=seed) for seed in range(2))
        towards, away = (
            merge_measured(
                build_method(method_name, {"a": weight}, density=0.5),
                tensor=_NAMES[0],
                base=base,
                experts={"a": expert},
            )
            for weight in (1.0, -1.0)
        )
        torch.testing.assert_close(towards - base, base - away, rtol=1e-5, atol=1e-6)


def _write_checkpoint(folder: Path, *, seed: int) -> Path:
    folder.mkdir()
    tensors = {
        f"model.layers.{layer}.mlp.{part}.weight": random_tensor((8, 6), seed=100 * seed + at)
        for at, (layer, part) in enumerate(
            [(layer, part) for layer in range(2) for part in ("up_proj", "down_proj")]
        )
    }
    save_file(tensors, folder / SINGLE_FILE)
    (folder / CONFIG_FILE).write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    return folder


def _sharded_copy(source: Path, folder: Path) -> Path:
    folder.mkdir()
    tensors = load_file(source / SINGLE_FILE)
    weight_map = {
        name: f"model-{at % 2 + 1:05d}-of-00002.safetensors" for at, name in enumerate(tensors)
    }
    for file in sorted(set(weight_map.values())):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, folder / file)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    (folder / CONFIG_FILE).write_text((source / CONFIG_FILE).read_text())
    return folder


def _recipe(method: AnyMethod, folders: list[Path], measured: Mapping[str, Path]) -> MergeRecipe:
    refs: list[dict[str, Any]] = [
        {"name": name, "path": str(folder)}
        for name, folder in zip(("base", "a", "b"), folders, strict=True)
    ]
    for ref in refs:
        if ref["name"] in measured:
            ref["statistics"] = {"path": str(measured[ref["name"]])}
    document = {"base": refs[0], "experts": refs[1:], "method": method.resolved()}
    return MergeRecipe.model_validate(document)
