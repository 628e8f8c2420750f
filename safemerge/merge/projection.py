"""How much of an update lies in the directions that alignment changed.

References:
    Hsu et al., Safe LoRA, arXiv:2405.16833.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor


class Projection(NamedTuple):
    """An update's image under the alignment's projection, and how near the two are."""

    update: Float32[Tensor, "..."]
    """C Delta, of the update's shape."""
    cosine: float
    """Cosine between C Delta and Delta, in [0, 1]."""


def alignment_projection(
    update: Float32[Tensor, "*shape"], alignment: Float32[Tensor, "*shape"]
) -> Projection | None:
    """Project an update with C = V V^T / norm(V), where V is what alignment changed.

    Tensors of one dimension count as one column, those of more than two as matrices of their
    first dimension. Norms and inner products are Frobenius ones.

    Args:
        update: Delta, a model minus the base.
        alignment: V, the aligned minus the unaligned model.

    Returns:
        C Delta and its cosine with Delta; None if either tensor is zero or empty, which tells
        nothing about safety.

    References:
        arXiv:2405.16833, section 3.2, its fast form: C is not idempotent, and scales with
        norm(V).
    """
    rows = update.shape[0] if update.ndim > 1 else max(1, update.numel())
    if update.numel() == 0:
        return None
    delta, change = update.reshape(rows, -1), alignment.reshape(rows, -1)
    norm, length = _norm(change), _norm(delta)
    if norm == 0.0 or length == 0.0:
        return None
    image = (change @ (change.T @ delta)).div_(norm)
    image_length = _norm(image)
    if image_length == 0.0:
        return Projection(image.reshape(update.shape), 0.0)
    inner = float((image * delta).sum(dtype=torch.float64))
    return Projection(image.reshape(update.shape), inner / (image_length * length))


def _norm(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().sum(dtype=torch.float64)))
