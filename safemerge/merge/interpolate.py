"""Interpolation of whole weights: a model's share in a weighted sum.

References:
    Wortsman et al., Model soups, arXiv:2203.05482.
    Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.errors import MergeError

PARALLEL = 0.9995
"""abs(cos) above which slerp is linear: the angle's sine is too small to divide by."""

MIN_WEIGHT_SUM = 1e-6
"""Smallest abs(sum of weights) that a normalised mean divides by."""

_LINE = 1e-8
"""Sine of an angle up to which two vectors lie on one line, as in mergekit's nuslerp."""

_CHUNK = 1 << 18


def linear_shares(
    weights: Mapping[str, float], *, normalize: bool, where: str = "linear"
) -> dict[str, float]:
    """Return the coefficient of each model in a linear merge: w_i, or w_i / sum of w.

    Args:
        weights: Weight by model name; negative ones are allowed.
        normalize: Whether the coefficients are made to sum to 1.
        where: Place named in messages.

    Returns:
        Coefficient by model name.

    Raises:
        MergeError: If the weights sum to less than 1e-6 in magnitude and are to be normalised.

    References:
        Wortsman et al., arXiv:2203.05482, section 2 (uniform soup: equal weights).
    """
    total = math.fsum(weights.values())
    if not normalize:
        return dict(weights)
    if abs(total) < MIN_WEIGHT_SUM:
        raise MergeError(
            f"{where}: weights must not sum to zero when normalised; got {total:g}. "
            f"Set normalize to false or change a weight."
        )
    return {name: weight / total for name, weight in weights.items()}


def pair_shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each of two models on the way between them: w_i / (w_1 + w_2).

    Args:
        weights: Weight by model name.

    Returns:
        Share by model name, sorted by name; halves where the weights sum to less than 1e-6 in
        magnitude.

    References:
        mergekit 0.1.5, ``nuslerp``.
    """
    total = math.fsum(weights.values())
    if abs(total) < MIN_WEIGHT_SUM:
        return dict.fromkeys(sorted(weights), 0.5)
    return {name: weight / total for name, weight in sorted(weights.items())}


class InnerProducts(NamedTuple):
    """What slerp reads of two tensors."""

    product: float
    first_square: float
    second_square: float


def inner_products(
    first: Float[Tensor, "*shape"],
    second: Float[Tensor, "*shape"],
    *,
    origin: Float[Tensor, "*shape"] | None = None,
) -> InnerProducts:
    """Return the inner products of two flattened tensors, with each other and themselves.

    They are added up in float64 over runs of 2**18 entries.

    Args:
        first: One tensor.
        second: Another of its shape.
        origin: What is subtracted from both first; None for nothing.

    Raises:
        MergeError: If an entry is not finite.
    """
    product = first_square = second_square = 0.0
    flat_first, flat_second = first.flatten(), second.flatten()
    for start in range(0, flat_first.numel(), _CHUNK):
        a = flat_first[start : start + _CHUNK].to(torch.float32)
        b = flat_second[start : start + _CHUNK].to(torch.float32)
        if origin is not None:
            place = origin.flatten()[start : start + _CHUNK].to(torch.float32)
            a, b = a - place, b - place
        product += float(torch.dot(a, b))
        first_square += float(torch.dot(a, a))
        second_square += float(torch.dot(b, b))
    if not math.isfinite(product + first_square + second_square):
        raise MergeError(
            f"slerp: entries must be finite; got an inner product of {product}. "
            f"Check the checkpoints."
        )
    return InnerProducts(product, first_square, second_square)


def arc_shares(
    products: InnerProducts, *, t: float, parallel: float | None = PARALLEL
) -> tuple[float, float]:
    """Return the coefficients of two tensors in their spherical interpolation.

    With the angle theta between the flattened tensors: sin((1 - t) theta) / sin(theta) and
    sin(t theta) / sin(theta). 1 - t and t (linear) where abs(cos theta) > 0.9995, parallel or
    opposite, and where a tensor is zero or empty. Norms are not changed beforehand, as in
    mergekit.

    Args:
        products: Of the tensor at t = 0 and that at t = 1.
        t: Position, in [0, 1]; any with no limit.
        parallel: abs(cos) above which the coefficients are linear; None for none but a sine of
            at most 1e-8.

    Returns:
        Coefficient of the first and of the second tensor.

    Raises:
        MergeError: If t is outside [0, 1] and there is a limit.

    References:
        Shoemake 1985, formula Slerp. Departure: the tensors are not of unit norm.
    """
    if parallel is not None and not 0.0 <= t <= 1.0:
        raise MergeError(f"slerp: t must be in [0, 1]; got {t}. Use linear to extrapolate.")
    norms = math.sqrt(products.first_square) * math.sqrt(products.second_square)
    cosine = products.product / norms if norms > 0.0 else 1.0
    cosine = min(1.0, max(-1.0, cosine))
    on_line = 1.0 - cosine**2 <= _LINE**2 if parallel is None else abs(cosine) > parallel
    if on_line:
        return 1.0 - t, t
    theta = math.acos(cosine)
    return math.sin((1.0 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def slerp_shares(
    first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"], *, t: float
) -> tuple[float, float]:
    """Return the coefficients of two tensors in their spherical interpolation; see `arc_shares`.

    Raises:
        MergeError: If t is outside [0, 1] or an entry is not finite.
    """
    return arc_shares(inner_products(first, second), t=t)


def slerp(
    first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"], *, t: float
) -> Float[Tensor, "*shape"]:
    """Interpolate two tensors along the arc between them; see `arc_shares`.

    Args:
        first: Tensor at t = 0.
        second: Tensor at t = 1.
        t: Position, in [0, 1].

    Returns:
        Tensor of the same shape and device, float32.

    Raises:
        MergeError: If t is outside [0, 1] or an entry is not finite.
    """
    first_share, second_share = slerp_shares(first, second, t=t)
    merged = first.to(torch.float32) * first_share
    return merged.add_(second, alpha=second_share)
