"""The table of merge methods: a method is a row of data over a few shared functions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.recipe import LayerGroup, Method
from safemerge.errors import MergeError
from safemerge.merge.coefficient import Coefficients, coefficients_for, group_of
from safemerge.merge.kernel import (
    TensorInputs,
    merge_linear,
    merge_slerp,
    merge_task_vectors,
)
from safemerge.merge.sparsify import ThresholdCache
from safemerge.weights.agreement import is_finite


class ParameterRange(NamedTuple):
    """A method's parameter: its name in YAML and the values that make sense."""

    name: str
    low: float
    high: float
    low_included: bool = True
    per_expert: bool = False


class MethodRow(NamedTuple):
    """One merge method."""

    name: str
    """Machine name, the recipe's discriminator."""
    title: str
    """Name for people."""
    function: Callable[[TensorInputs], Tensor]
    """Pure: tensors and coefficients to the merged tensor."""
    parameters: tuple[ParameterRange, ...]
    """Usual ranges, for search spaces; outside them weights and lambda are still defined."""
    uses_base: bool
    """Whether task vectors from the base enter, rather than whole weights."""
    citation: str
    url: str
    variant: str
    """Which library's variant it equals, and how it departs from the paper."""


_WEIGHTS = ParameterRange("weights", -2.0, 2.0, per_expert=True)
_LAMBDA = ParameterRange("lambda", 0.0, 2.0)
_DENSITY = ParameterRange("density", 0.0, 1.0, low_included=False, per_expert=True)

_ROWS = (
    MethodRow(
        name="linear",
        title="Linear (model soup)",
        function=merge_linear,
        parameters=(_WEIGHTS,),
        uses_base=False,
        citation="Wortsman et al., Model soups, ICML 2022",
        url="https://arxiv.org/abs/2203.05482",
        variant="As mergekit's linear; weights are normalised unless normalize is false.",
    ),
    MethodRow(
        name="slerp",
        title="SLERP",
        function=merge_slerp,
        parameters=(ParameterRange("t", 0.0, 1.0),),
        uses_base=False,
        citation="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        url="https://doi.org/10.1145/325165.325242",
        variant="As mergekit's slerp, per tensor; linear where abs(cos) > 0.9995.",
    ),
    MethodRow(
        name="task_arithmetic",
        title="Task arithmetic",
        function=partial(merge_task_vectors, sparsify="none", consensus="sum"),
        parameters=(_WEIGHTS, _LAMBDA),
        uses_base=True,
        citation="Ilharco et al., Editing models with task arithmetic, ICLR 2023",
        url="https://arxiv.org/abs/2212.04089",
        variant="As the paper, with a weight for each expert; peft and mergekit agree.",
    ),
    MethodRow(
        name="ties",
        title="TIES",
        function=partial(merge_task_vectors, sparsify="magnitude", consensus="disjoint_mean"),
        parameters=(_WEIGHTS, _DENSITY, _LAMBDA),
        uses_base=True,
        citation="Yadav et al., TIES-Merging, NeurIPS 2023",
        url="https://arxiv.org/abs/2306.01708",
        variant=(
            "As mergekit's ties with normalize: true (trim per tensor, weights before the sign "
            "election, divided by the agreeing weights, absolute values here); the paper trims "
            "over the whole model and has no weights; peft elects before weighting and divides "
            "by the count."
        ),
    ),
    MethodRow(
        name="dare_linear",
        title="DARE (linear)",
        function=partial(merge_task_vectors, sparsify="random", consensus="sum"),
        parameters=(_WEIGHTS, _DENSITY, _LAMBDA),
        uses_base=True,
        citation="Yu et al., Language Models are Super Mario, ICML 2024",
        url="https://arxiv.org/abs/2311.03099",
        variant="As the paper and peft: kept entries are divided by density; masks are counter-"
        "based, from seed, tensor, expert and index.",
    ),
    MethodRow(
        name="dare_ties",
        title="DARE-TIES",
        function=partial(merge_task_vectors, sparsify="random", consensus="disjoint_mean"),
        parameters=(_WEIGHTS, _DENSITY, _LAMBDA),
        uses_base=True,
        citation="Yu et al., Language Models are Super Mario, ICML 2024",
        url="https://arxiv.org/abs/2311.03099",
        variant="DARE, then TIES' election and weighted mean, as mergekit's dare_ties with "
        "normalize: true; as there and in peft, the random mask takes the place of TIES' trim.",
    ),
)

METHODS: Mapping[str, MethodRow] = MappingProxyType({row.name: row for row in _ROWS})
"""Every merge method by machine name."""


def method_row(name: str) -> MethodRow:
    """Return a method's row.

    Raises:
        MergeError: If there is no such method.
    """
    if name not in METHODS:
        raise MergeError(
            f"method '{name}': must be a known merge method; got none of that name. "
            f"Known: {', '.join(METHODS)}."
        )
    return METHODS[name]


def models_used(method: Method, coefficients: Coefficients) -> tuple[str, ...]:
    """Return the models whose tensors a merge reads, besides the base, sorted.

    Args:
        method: A recipe's method.
        coefficients: Its numbers for the tensor.

    Returns:
        Model names with a coefficient that is not zero; may contain the base's name for
        linear and slerp.
    """
    if method.name == "slerp":
        ends = dict(zip(method.models, (1.0 - coefficients.t, coefficients.t), strict=True))
        return tuple(sorted(name for name, share in ends.items() if share))
    if coefficients.lambda_ == 0.0:
        return ()
    return tuple(sorted(name for name, weight in coefficients.weights.items() if weight))


def merge_tensor(
    method: Method,
    *,
    tensor: str,
    base: Float[Tensor, "..."],
    experts: Mapping[str, Float[Tensor, "..."]],
    base_name: str = "base",
    groups: Sequence[LayerGroup] = (),
    seed: int = 0,
    dtype: torch.dtype | None = None,
    thresholds: ThresholdCache | None = None,
) -> Float[Tensor, "..."]:
    """Merge one named tensor: the pure heart of every merge.

    Arithmetic is in float32 on the base's device; the result is rounded to nearest. Inputs are
    not changed and the result shares no memory with them.

    Args:
        method: Method and its parameters, from a recipe.
        tensor: Tensor name; chooses the layer group and the random masks.
        base: The base's tensor, any shape, float32, bfloat16 or float16.
        experts: Experts' tensors by name, of the base's shape and on its device; those with
            weight zero may be left out.
        base_name: The base's name, for methods that take it as one of the models.
        groups: The recipe's layer groups.
        seed: The recipe's seed of random masks.
        dtype: Type of the result; None for the base's.
        thresholds: Where trim thresholds are kept between candidates; None for nowhere.

    Returns:
        The merged tensor, of the base's shape and device.

    Raises:
        MergeError: If a tensor is missing, of another shape, or not finite; if a parameter
            breaks its range; or if the result is not finite in the asked dtype.
    """
    coefficients = coefficients_for(method, group_of(tensor, groups))
    inputs = TensorInputs(
        tensor=tensor,
        base=base,
        experts=experts,
        coefficients=coefficients,
        dtype=dtype or base.dtype,
        base_name=base_name,
        models=tuple(getattr(method, "models", ())),
        normalize=bool(getattr(method, "normalize", True)),
        seed=seed,
        thresholds=thresholds,
    )
    merged = method_row(method.name).function(inputs)
    if not is_finite(merged):
        count = int(merged.numel() - torch.isfinite(merged).sum().item())
        raise MergeError(
            f"tensor '{tensor}': merged weights must be finite; got {count} NaN or infinite of "
            f"{merged.numel()} as {merged.dtype}. Check the checkpoints, or make weights and "
            f"lambda smaller."
        )
    return merged
