"""Means of directions: spherical interpolation of several models, from inner products alone.

With unit vectors p_i = theta_i / norm_i, every mean on the sphere is a sum of a_i p_i. So the
numbers a_i are found from the matrix of cosines, and the tensors are read twice in all: once for
their inner products and once for the sum.

References:
    Karcher, Riemannian center of mass and mollifier smoothing, 1977.
    Goddard, mergekit's ``multislerp``.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

_CANCELLED = 1e-6
"""Length of a mean of unit vectors below which it tells no direction."""

_OPPOSITE = -1.0 + 1e-9
"""Cosine below which a point has no unique shortest way from the mean."""


def multi_slerp_shares(
    products: Float64[Tensor, "models models"],
    weights: Sequence[float],
    *,
    tangent: bool = True,
) -> list[float]:
    """Return the coefficients of models in their spherical interpolation.

    Directions are mapped into the tangent space at their normalised weighted mean, averaged
    there, and mapped back: one step of the Karcher mean. The length is the weighted mean of the
    models' norms.

    Args:
        products: Inner products of the models' flattened tensors.
        weights: Weights that sum to 1.
        tangent: False stops at the normalised mean. That is what mergekit's ``multislerp``
            comes to: it averages projections instead of logarithms, whose mean is zero at the
            point they are taken from.

    Returns:
        One coefficient for each model; a zero tensor gets 0. The weights themselves where
        directions cancel (a mean shorter than 1e-6), or all tensors are zero.
    """
    return _shares(products, weights, num_steps=1 if tangent else 0, tolerance=0.0)


def karcher_shares(
    products: Float64[Tensor, "models models"],
    weights: Sequence[float],
    *,
    num_steps: int = 100,
    tolerance: float = 1e-9,
) -> list[float]:
    """Return the coefficients of models in the Karcher mean of their directions.

    The mean m minimises the sum of w_i angle(m, p_i)**2; it is found by fixed-point steps along
    the mean logarithm, from the normalised weighted mean on. For two models of one norm with
    weights 1 - t and t it is their slerp at t. The length is the weighted mean of the norms.

    Args:
        products: Inner products of the models' flattened tensors.
        weights: Weights that sum to 1; negative ones push away, without a promise that the
            steps converge.
        num_steps: Most steps.
        tolerance: Step length, an angle in radians, that ends the iteration.

    Returns:
        One coefficient for each model; a zero tensor gets 0. The weights themselves where
        directions cancel (a mean shorter than 1e-6), or all tensors are zero.

    References:
        Karcher 1977; steps as in Afsari et al., arXiv:1201.0925, with step size 1.
    """
    return _shares(products, weights, num_steps=num_steps, tolerance=tolerance)


def _shares(
    products: Tensor, weights: Sequence[float], *, num_steps: int, tolerance: float
) -> list[float]:
    norms = products.diagonal().clamp_min(0.0).sqrt()
    pointing = norms > 0.0
    inverse = torch.where(pointing, 1.0 / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    cosines = (products * inverse[:, None] * inverse[None, :]).clamp(-1.0, 1.0)
    share = torch.tensor(list(weights), dtype=torch.float64)
    directed = share * pointing
    length = _length(directed, cosines)
    if length < _CANCELLED:
        return list(weights)
    mean = directed / length
    for _ in range(num_steps):
        towards = (cosines @ mean).clamp(-1.0, 1.0)
        angle = torch.acos(towards)
        stretch = torch.where(angle > 1e-8, angle / torch.sin(angle).clamp_min(1e-300), 1.0)
        pull = directed * torch.where(towards > _OPPOSITE, stretch, 0.0)
        step = pull - (pull * towards).sum() * mean
        length = _length(step, cosines)
        if length <= tolerance:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
        mean = mean / _length(mean, cosines)
    return (mean * inverse * float((share * norms).sum())).tolist()


def _length(combination: Tensor, cosines: Tensor) -> float:
    return math.sqrt(max(0.0, float(combination @ cosines @ combination)))
