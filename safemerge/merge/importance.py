"""LED's choice of entries: important to an expert and to the base, and to no other expert.

References:
    Ma et al., LED-Merging, arXiv:2502.16770.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def most_important(scores: Float[Tensor, "*shape"], *, density: float) -> Bool[Tensor, "*shape"]:
    """Mark the entries of a tensor that score highest.

    Entries that tie with the last one taken are taken too; entries of score 0 never are.

    Args:
        scores: At least 0, any shape.
        density: Fraction marked, in (0, 1]; one entry at least.

    Returns:
        True where an entry is important.

    References:
        arXiv:2502.16770, location: the top share of a tensor's scores. Departure: entries
        without gradient, such as tokens that the data lack, are not important.
    """
    if scores.numel() == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    kept = max(1, math.floor(density * scores.numel()))
    limit = scores.flatten().kthvalue(scores.numel() - kept + 1).values
    return (scores >= limit) & (scores > 0.0)
