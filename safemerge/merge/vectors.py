"""Merges in which every row or column of a tensor has a direction of its own.

References:
    mergekit 0.1.5, ``nuslerp`` and ``model_stock`` with ``filter_wise``.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from safemerge.merge.inputs import TensorInputs
from safemerge.merge.stock import stock_ratio
from safemerge.merge.threshold import check_finite_entries

_LEAST_NORM = 1e-7
"""Least norm that a direction is divided by."""

_LINE = 1e-8
"""Sine of an angle up to which two vectors lie on one line."""


def arcs_by_vector(
    inputs: TensorInputs, shares: Mapping[str, float], *, from_base: bool, by_column: bool
) -> Float32[Tensor, "..."]:
    """Interpolate two models spherically, vector by vector.

    Args:
        inputs: Tensors; not changed.
        shares: Two models and how far the way goes towards each; they sum to 1.
        from_base: Whether task vectors are interpolated and added to the base, not weights.
        by_column: Whether vectors run along the first axis, not the last.

    Returns:
        The merged tensor, float32.

    Raises:
        MergeError: If a tensor is missing, of another shape, or not finite.
    """
    axis = 0 if by_column else -1
    first, second = (_vectors(inputs, name, from_base) for name in shares)
    cosine = (first * second).sum(dim=axis, keepdim=True, dtype=torch.float64)
    for item in (first, second):
        cosine /= item.norm(dim=axis, keepdim=True, dtype=torch.float64).clamp_min(_LEAST_NORM)
    cosine.clamp_(-1.0, 1.0)
    on_line = 1.0 - cosine.square() <= _LINE**2
    angle = torch.acos(cosine.masked_fill(on_line, 0.0))
    merged = torch.zeros_like(first)
    for item, share in zip((first, second), shares.values(), strict=True):
        on_arc = torch.sin(share * angle) / torch.sin(angle)
        merged += item * on_arc.masked_fill(on_line, share).to(torch.float32)
    return merged.add_(inputs.base) if from_base else merged


def stock_by_row(
    inputs: TensorInputs, names: Sequence[str], *, clamped: bool
) -> Float32[Tensor, "..."]:
    """Return Model Stock's task vector where each row has an angle of its own.

    Args:
        inputs: Tensors of two axes or more; not changed.
        names: The experts.
        clamped: See `stock_ratio`.

    Returns:
        Ratio of the row times the experts' mean task vector, float32.

    Raises:
        MergeError: If a tensor is missing, of another shape, or not finite.
    """
    offsets = torch.stack([_vectors(inputs, name, from_base=True) for name in names], dim=-2)
    products = (offsets @ offsets.mT).to(torch.float64)
    ratio = stock_ratio(products, clamped=clamped).to(torch.float32)
    return offsets.mean(dim=-2).mul_(ratio.unsqueeze(-1))


def _vectors(inputs: TensorInputs, name: str, from_base: bool) -> Tensor:
    vectors = inputs.model(name).to(torch.float32)
    if from_base:
        vectors = vectors - inputs.base.to(torch.float32)
    check_finite_entries(vectors, f"{inputs.where}, model '{name}'")
    return vectors
