"""One named tensor of a recipe: its experts' steps, the method, the steps after it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.config.checkpoint import Quantity
from safemerge.config.coefficient import Anchors
from safemerge.config.merge_method import AddedMethod
from safemerge.config.method import AnyMethod
from safemerge.config.recipe import LayerGroup, Step
from safemerge.errors import MergeError
from safemerge.merge.coefficient import (
    Coefficients,
    coefficients_for,
    depth_of,
    group_of,
    step_numbers,
)
from safemerge.merge.inputs import TensorInputs
from safemerge.merge.interpolate import pair_shares
from safemerge.merge.spectrum import SpectrumCache
from safemerge.merge.step import FUNCTIONS, StepInputs, is_idle
from safemerge.merge.table import merge_function
from safemerge.merge.threshold import ThresholdCache
from safemerge.weights.agreement import is_finite
from safemerge.weights.statistics import TensorStatistics

_NOTHING_MEASURED: Mapping[str, TensorStatistics] = MappingProxyType({})


def models_used(method: AnyMethod, coefficients: Coefficients) -> tuple[str, ...]:
    """Return the models whose tensors a method reads, besides the base, sorted.

    Args:
        method: A recipe's method.
        coefficients: Its numbers for the tensor.

    Returns:
        Model names with a coefficient that is not zero; may contain the base's name for
        methods that merge whole weights.
    """
    if isinstance(method, AddedMethod):
        active = coefficients.weights if coefficients.lambda_ else {}
        return tuple(sorted(name for name, weight in active.items() if weight))
    if method.name == "slerp":
        ends = dict(zip(method.models, (1.0 - coefficients.t, coefficients.t), strict=True))
        return tuple(sorted(name for name, share in ends.items() if share))
    if method.name == "passthrough":
        return tuple(method.models)
    if method.name == "nuslerp":
        shares = pair_shares(coefficients.weights)
        return tuple(name for name, share in shares.items() if share)
    if coefficients.lambda_ == 0.0:
        return ()
    return tuple(sorted(name for name, weight in coefficients.weights.items() if weight))


def models_read(
    method: AnyMethod,
    *,
    tensor: str,
    base_name: str = "base",
    groups: Sequence[LayerGroup] = (),
    num_layers: int | None = None,
    steps: Sequence[Step] = (),
    anchors: Anchors = "depth",
) -> tuple[str, ...]:
    """Return the models, the base aside, whose tensors `merge_tensor` reads.

    Args:
        method: A recipe's method.
        tensor: Tensor name.
        base_name: The base's name.
        groups: The recipe's layer groups.
        num_layers: Decoder layers of the model, for coefficients with anchors.
        steps: The recipe's steps.
        anchors: How the recipe reads anchors outside the layers.

    Returns:
        Names sorted; models without a coefficient are left out.
    """
    group, depth = group_of(tensor, groups), depth_of(tensor, num_layers, anchors)
    used = models_used(method, coefficients_for(method, group, depth))
    names = set(used)
    for step, _ in _active(steps, group, depth):
        if step.on == "merged" or any(step.changes(name, base_name) for name in used):
            names.update(step.models_read(base_name))
    return tuple(sorted(names - {base_name}))


def statistics_read(
    method: AnyMethod,
    *,
    tensor: str,
    base_name: str = "base",
    groups: Sequence[LayerGroup] = (),
    num_layers: int | None = None,
    steps: Sequence[Step] = (),
    anchors: Anchors = "depth",
) -> dict[str, frozenset[Quantity]]:
    """Return what `merge_tensor` reads of models' statistics for a tensor, by model.

    Args:
        method: A recipe's method.
        tensor: Tensor name.
        base_name: The base's name.
        groups: The recipe's layer groups.
        num_layers: Decoder layers of the model, for coefficients with anchors.
        steps: The recipe's steps.
        anchors: How the recipe reads anchors outside the layers.

    Returns:
        Quantities by model name, sorted; empty for most methods.
    """
    group, depth = group_of(tensor, groups), depth_of(tensor, num_layers, anchors)
    used = models_used(method, coefficients_for(method, group, depth))
    of_steps = {
        step.statistic for step, _ in _active(steps, group, depth) if step.statistic is not None
    }
    read: dict[str, frozenset[Quantity]] = {}
    for name in used:
        wanted: set[Quantity] = set() if name == base_name else set(of_steps)
        if method.statistic is not None:
            wanted.add(method.statistic)
        if wanted:
            read[name] = frozenset(wanted)
    return read


def merge_tensor(
    method: AnyMethod,
    *,
    tensor: str,
    base: Float[Tensor, "..."],
    experts: Mapping[str, Float[Tensor, "..."]],
    base_name: str = "base",
    groups: Sequence[LayerGroup] = (),
    num_layers: int | None = None,
    steps: Sequence[Step] = (),
    anchors: Anchors = "depth",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    thresholds: ThresholdCache | None = None,
    spectra: SpectrumCache | None = None,
    statistics: Mapping[str, TensorStatistics] = _NOTHING_MEASURED,
    out: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    """Merge one named tensor: the pure heart of every merge.

    Arithmetic is in float32 on the base's device; the result is rounded to nearest, once, after
    the last step. Inputs are not changed and the result shares no memory with them. After an
    error `out` may hold anything.

    Args:
        method: AnyMethod and its parameters, from a recipe.
        tensor: Tensor name; chooses the layer group and the random masks.
        base: The base's tensor, any shape, float32, bfloat16 or float16.
        experts: Experts' tensors by name, of the base's shape and on its device; those that
            `models_read` does not name may be left out.
        base_name: The base's name, for methods that take it as one of the models.
        groups: The recipe's layer groups.
        num_layers: Decoder layers of the model, for coefficients with anchors.
        steps: The recipe's safety operators, in order.
        anchors: How the recipe reads anchors outside the layers.
        seed: The recipe's seed of random masks.
        dtype: Type of the result; None for the base's.
        thresholds: Where trim thresholds are kept between candidates; None for nowhere.
        spectra: Where singular vectors are kept between candidates; None for nowhere.
        statistics: What was measured of models for this tensor; `statistics_read` names what
            is needed.
        out: Where the result is written: contiguous, of the base's shape and device and of the
            dtype asked for; None for new memory.

    Returns:
        The merged tensor, of the base's shape and device; `out` where that is given.

    Raises:
        MergeError: If a tensor is missing, of another shape, or not finite; if a parameter
            breaks its range; or if the result is not finite in the asked dtype.
        ConfigError: If a coefficient has anchors and the number of layers is not given.
    """
    group, depth = group_of(tensor, groups), depth_of(tensor, num_layers, anchors)
    coefficients = coefficients_for(method, group, depth)
    active = list(_active(steps, group, depth))
    given = TensorInputs(
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
        spectra=spectra,
        statistics=statistics,
        out=out,
    )
    if out is not None:
        _check_destination(given, out)
    inputs = _with_steps_on_experts(given, models_used(method, coefficients), active)
    after = [(step, numbers) for step, numbers in active if step.on == "merged"]
    if not after:
        merged = merge_function(method.name)(inputs)
        merged = merged if out is None or merged is out else out.copy_(merged)
        return merged if tensor in inputs.found_finite else _checked(merged, tensor)
    merged = merge_function(method.name)(replace(inputs, dtype=torch.float32, out=None))
    for step, numbers in after:
        merged = _stepped(given, step, numbers, merged)
    return _checked(given.rounded(merged), tensor)


def _check_destination(given: TensorInputs, out: Tensor) -> None:
    base = given.base
    fits = (out.shape, out.dtype, out.device) == (base.shape, given.dtype, base.device)
    if not fits or not out.is_contiguous():
        raise MergeError(
            f"{given.where}: the destination must be contiguous, {tuple(base.shape)} of "
            f"{given.dtype} on {base.device}; got {tuple(out.shape)} of {out.dtype} on "
            f"{out.device}. Give none, for new memory."
        )


def _active(
    steps: Sequence[Step], group: str, depth: float | None
) -> Iterator[tuple[Step, dict[str, float]]]:
    for step in steps:
        numbers = step_numbers(step, group, depth)
        if not is_idle(step, numbers):
            yield step, numbers


def _with_steps_on_experts(
    given: TensorInputs, used: Sequence[str], active: Sequence[tuple[Step, dict[str, float]]]
) -> TensorInputs:
    changed: dict[str, Tensor] = {}
    for step, numbers in active:
        for name in used:
            if name != given.base_name and step.changes(name, given.base_name):
                weights = changed.get(name, given.model(name))
                merged = tuple(other for other in used if other != given.base_name)
                changed[name] = _stepped(given, step, numbers, weights, name, merged)
    if not changed:
        return given
    # NOTE: thresholds and singular vectors are kept by name, for the experts as they are.
    return replace(given, experts={**given.experts, **changed}, thresholds=None, spectra=None)


def _stepped(
    given: TensorInputs,
    step: Step,
    numbers: Mapping[str, float],
    weights: Tensor,
    expert: str = "",
    merged: tuple[str, ...] = (),
) -> Tensor:
    names = step.models_of_fields(given.base_name)
    fields = zip(step.reads, names, strict=True)
    others = tuple(name for name in names if name != given.base_name)
    return FUNCTIONS[step.name](
        StepInputs(
            tensor=given.tensor,
            weights=weights.to(torch.float32),
            base=given.base.to(torch.float32),
            read={field: given.model(name).to(torch.float32) for field, name in fields},
            numbers=numbers,
            expert=expert,
            merged=merged,
            statistics=given.statistics,
            rank=getattr(step, "rank", 0),
            spectra=given.spectra,
            # What is kept on disk is of one model against the base.
            kept_as=others if len(others) == 1 and names[0] == others[0] else (),
        )
    )


def _checked(merged: Tensor, tensor: str) -> Tensor:
    if not is_finite(merged):
        count = int(merged.numel() - torch.isfinite(merged).sum().item())
        raise MergeError(
            f"tensor '{tensor}': merged weights must be finite; got {count} NaN or infinite of "
            f"{merged.numel()} as {merged.dtype}. Check the checkpoints, or make weights and "
            f"lambda smaller."
        )
    return merged
