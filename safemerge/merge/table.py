"""The maths of the merge methods: a function of one tensor's inputs for each, by name.

What a method is, its parameters and its source stand in its declaration
(`safemerge.config.method`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from safemerge.config.merge_method import MergeMethod, load_method
from safemerge.errors import MergeError
from safemerge.merge.elementwise import (
    merge_linear,
    merge_model_stock,
    merge_nuslerp,
    merge_on_sphere,
    merge_passthrough,
    merge_slerp,
    merge_task_vectors,
)
from safemerge.merge.fisher import merge_fisher
from safemerge.merge.fusion import merge_fusion, merge_nearswap
from safemerge.merge.inputs import TensorInputs
from safemerge.merge.interference import merge_wudi
from safemerge.merge.matrix import merge_iso_c, merge_iso_cts, merge_tsv
from safemerge.merge.ram import merge_ram
from safemerge.merge.regmean import merge_regmean
from safemerge.merge.sce import merge_sce
from safemerge.merge.threshold import check_finite_entries

MergeFunction = Callable[[TensorInputs], Tensor]
"""Pure: tensors and coefficients to the merged tensor."""

FUNCTIONS: Mapping[str, MergeFunction] = MappingProxyType(
    {
        "linear": merge_linear,
        "slerp": merge_slerp,
        "multi_slerp": partial(merge_on_sphere, mean="multi_slerp"),
        "nuslerp": merge_nuslerp,
        "karcher": partial(merge_on_sphere, mean="karcher"),
        "passthrough": merge_passthrough,
        "task_arithmetic": partial(merge_task_vectors, sparsify="none", consensus="sum"),
        "ties": partial(merge_task_vectors, sparsify="magnitude", consensus="disjoint_mean"),
        "dare_linear": partial(merge_task_vectors, sparsify="random", consensus="sum"),
        "dare_ties": partial(merge_task_vectors, sparsify="random", consensus="disjoint_mean"),
        "della_linear": partial(merge_task_vectors, sparsify="rank", consensus="sum"),
        "della": partial(merge_task_vectors, sparsify="rank", consensus="disjoint_mean"),
        "breadcrumbs": partial(merge_task_vectors, sparsify="outliers", consensus="sum"),
        "breadcrumbs_ties": partial(
            merge_task_vectors, sparsify="outliers", consensus="disjoint_mean"
        ),
        "model_stock": merge_model_stock,
        "sce": merge_sce,
        "arcee_fusion": merge_fusion,
        "nearswap": merge_nearswap,
        "ram": merge_ram,
        "consensus_ta": partial(merge_task_vectors, sparsify="none", consensus="agreement"),
        "tsv_m": merge_tsv,
        "iso_c": merge_iso_c,
        "iso_cts": merge_iso_cts,
        "wudi": merge_wudi,
        "fisher": merge_fisher,
        "regmean": merge_regmean,
    }
)
"""safemerge's own merge methods by name."""


def merge_function(name: str) -> MergeFunction:
    """Return the maths of a method, safemerge's own or of another package.

    Raises:
        ConfigError: If there is no such method, or its package cannot be imported.
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    return partial(merge_added, load_method(name, builtin=FUNCTIONS))


def is_element_wise(name: str) -> bool:
    """Tell whether an entry of the result depends on a few numbers and on that entry alone."""
    function = merge_function(name)
    return getattr(function, "func", function) in (merge_linear, merge_task_vectors)


def merge_added(method: MergeMethod, inputs: TensorInputs) -> Tensor:
    """Merge one tensor by the function of another package; see `merge_method`.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite; or the
            function fails or returns something else than a float tensor of the base's shape.
    """
    weights = inputs.active if method.uses_base else inputs.weighted_models()
    if not weights or inputs.base.numel() == 0:
        return inputs.untouched()
    # Copies, so that a function that writes to what it is given changes no model.
    base = inputs.base.to(torch.float32, copy=True)
    models = torch.stack([inputs.model(name).to(torch.float32) for name in weights])
    for name, model in zip(weights, models, strict=True):
        check_finite_entries(model, f"{inputs.where}, expert '{name}'")
    given = {
        "base": base,
        "models": models,
        "task_vectors": models - base if method.uses_base else models,
        "weights": torch.tensor(list(weights.values()), dtype=torch.float32, device=base.device),
    }
    where = f"{inputs.where}, merge method '{method.name}'"
    options = inputs.coefficients.options
    try:
        merged = method.function(*(given[name] for name in method.tensors), **options)
    except Exception as error:
        raise MergeError(
            f"{where}: its function must not fail; got {type(error).__name__}: {error}. It is "
            f"{method.function.__module__}:{method.function.__qualname__}."
        ) from error
    found = tuple(getattr(merged, "shape", ()))
    if not (isinstance(merged, Tensor) and merged.is_floating_point()) or found != base.shape:
        got = f"shape {found}" if isinstance(merged, Tensor) else type(merged).__name__
        raise MergeError(
            f"{where}: must return a float tensor of the base's shape {tuple(base.shape)}; got "
            f"{got}."
        )
    return inputs.plus(merged) if method.uses_base else inputs.rounded(merged)
