"""Model Stock: how far from the base the experts' mean is trusted, told by their angles.

References:
    Jang et al., Model Stock: All we need is just a few fine-tuned models, arXiv:2403.19522.
"""

import torch
from jaxtyping import Float64
from torch import Tensor


def stock_ratio(products: Float64[Tensor, "experts experts"]) -> float:
    """Return t = N c / (1 + (N - 1) c), the share of the experts' mean against the base.

    c is the mean cosine over the pairs of task vectors, taken as 0 where it is negative or a
    task vector is zero; so t is in [0, 1]. A single expert has t = 1.

    Args:
        products: Inner products of the experts' flattened task vectors of one tensor.

    Returns:
        The interpolation ratio t.

    References:
        arXiv:2403.19522, equation 2 (N experts). Departure: a negative mean cosine, for which
        the formula extrapolates or has a pole, gives the base.
    """
    count = len(products)
    if count == 1:
        return 1.0
    norms = products.diagonal().clamp_min(0.0).sqrt()
    scale = norms[:, None] * norms[None, :]
    cosines = torch.where(scale > 0.0, products / scale.clamp_min(1e-300), 0.0)
    pairs = cosines[torch.triu(torch.ones(count, count, dtype=torch.bool), diagonal=1)]
    cosine = min(1.0, max(0.0, float(pairs.mean())))
    return count * cosine / (1.0 + (count - 1) * cosine)
