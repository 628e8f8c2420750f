"""RegMean: the matrix that fits all models' outputs of a linear layer, on their own inputs.

References:
    Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models,
    arXiv:2212.09849.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.elementwise import merge_linear
from safemerge.merge.inputs import TensorInputs


def merge_regmean(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one linear layer's weights by least squares; other tensors are averaged.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If a model's tensor is missing or of another shape, its Gram matrix is
            missing, of another shape or not finite, or their sum is singular.

    References:
        arXiv:2212.09849, RegMean's closed form; see `least_squares_mean`. Embeddings and output
        head count as other tensors.
    """
    weights = inputs.weighted_models()
    models = [inputs.model(name) for name in weights]
    for name in weights:
        inputs.require_statistics(name)
    layers = [inputs.statistics[name].gram is not None for name in weights]
    if len(weights) == 1 or not any(layers) or inputs.base.numel() == 0:
        return merge_linear(inputs)
    columns = inputs.base.shape[-1] if inputs.base.ndim else 1
    merged = least_squares_mean(
        [model.to(torch.float64) for model in models],
        [inputs.measured(name, "gram", (columns, columns)).to(torch.float64) for name in weights],
        list(weights.values()),
        off_diagonal=inputs.coefficients.number("off_diagonal"),
        ridge=inputs.coefficients.number("ridge"),
        where=inputs.where,
    )
    return merged.to(torch.float32).to(inputs.dtype)


def least_squares_mean(
    matrices: Sequence[Float64[Tensor, "rows columns"]],
    grams: Sequence[Float64[Tensor, "columns columns"]],
    weights: Sequence[float],
    *,
    off_diagonal: float,
    ridge: float,
    where: str = "tensor",
) -> Float64[Tensor, "rows columns"]:
    """Return (sum of w_i W_i G_i) (sum of w_i G_i)^-1, for layers y = W x.

    With ``off_diagonal`` 1 and ``ridge`` 0 this is the W that minimises the sum over models of
    w_i E norm(W x - W_i x)^2. Computed as the weighted mean plus the fit of what is left, so that
    equal matrices give themselves.

    Args:
        matrices: W_i.
        grams: G_i, the mean of x x^T over model i's inputs; symmetric, none negative.
        weights: w_i, above 0.
        off_diagonal: Factor of the entries off the diagonals, in [0, 1].
        ridge: Added to each diagonal, times its mean entry; at least 0.
        where: Place named first in messages.

    Raises:
        MergeError: If the sum of the Gram matrices is singular: its pivots, with inputs scaled to
            one length, reach what rounding to float32 leaves.

    References:
        arXiv:2212.09849, RegMean's closed form. The paper has no weights and no ridge; it takes
        0.9 (0.1 for T5) off the diagonal, alpha there.
    """
    share = sum(weights)
    mean = torch.stack(
        [matrix * (weight / share) for matrix, weight in zip(matrices, weights, strict=True)]
    ).sum(0)
    total, moved = torch.zeros_like(grams[0]), torch.zeros_like(mean)
    for matrix, gram, weight in zip(matrices, grams, weights, strict=True):
        diagonal = gram.diagonal()
        scaled = gram * (off_diagonal * weight)
        added = (1.0 - off_diagonal) * diagonal + ridge * diagonal.mean()
        scaled.diagonal().add_(added, alpha=weight)
        total += scaled
        moved += (matrix - mean) @ scaled
    length = total.diagonal().clamp_min(0.0).sqrt()
    inverse = torch.where(length > 0.0, 1.0 / length, 0.0)
    factor, failed = torch.linalg.cholesky_ex(total * inverse * inverse[:, None])
    pivots = factor.diagonal().square()
    limit = math.sqrt(len(pivots)) * torch.finfo(torch.float32).eps
    if bool(failed) or not float(pivots.min()) > limit:
        raise MergeError(
            f"{where}: the Gram matrices' sum must be invertible; got a singular one of "
            f"{len(pivots)} inputs. Gather more rows, lower off_diagonal, or set ridge above 0."
        )
    return mean + (torch.cholesky_solve((moved * inverse).T, factor).T * inverse)
