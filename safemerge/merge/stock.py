"""Model Stock: how far from the base the experts' mean is trusted, by their angles.

References:
    Jang et al., Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

_LEAST_PRODUCT = 1e-6
"""Least product of two norms that mergekit divides by."""

_POLE = 1e-6
"""Distance from the formula's pole within which mergekit takes the base."""


def stock_ratio(
    products: Float64[Tensor, "*rows experts experts"], *, clamped: bool = True
) -> Float64[Tensor, "*rows"]:
    """Return t = N c / (1 + (N - 1) c), the share of the experts' mean against the base.

    c is the mean cosine over the pairs of task vectors, taken as 0 where it is negative or a
    task vector is zero; so t is in [0, 1]. A single expert has t = 1.

    Args:
        products: Inner products of the experts' task vectors: of one whole tensor, or of each of
            its rows.
        clamped: False takes a negative c as it is, with t = 0 at the pole of the formula, and
            divides by norms whose product is at least 1e-6: as mergekit 0.1.5.

    Returns:
        The interpolation ratio t, of the tensor or of each row.

    References:
        arXiv:2403.19522, equation 2 (N experts). Departure: a negative mean cosine, for which
        the formula extrapolates or has a pole, gives the base.
    """
    count = products.shape[-1]
    if count == 1:
        return torch.ones(products.shape[:-2], dtype=torch.float64, device=products.device)
    norms = products.diagonal(dim1=-2, dim2=-1).clamp_min(0.0).sqrt()
    scale = norms[..., :, None] * norms[..., None, :]
    least = 1e-300 if clamped else _LEAST_PRODUCT
    cosines = torch.where(scale > 0.0, products / scale.clamp_min(least), 0.0).clamp(-1.0, 1.0)
    first, second = torch.triu_indices(count, count, offset=1)
    cosine = cosines[..., first, second].mean(dim=-1)
    if clamped:
        cosine = cosine.clamp(0.0, 1.0)
    divisor = 1.0 + (count - 1) * cosine
    at_pole = divisor.abs() < _POLE
    return torch.where(at_pole, 0.0, count * cosine / divisor.masked_fill(at_pole, 1.0))
