"""Consensus: how sparsified task vectors become one (the other axis of the merge methods).

References:
    Yadav et al., TIES-Merging, arXiv:2306.01708.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.errors import MergeError


def weighted_sum(
    task_vectors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float]
) -> Float32[Tensor, "*shape"]:
    """Return the sum of w_i tau_i, in float32, added up in the given order.

    Args:
        task_vectors: One or more task vectors of one shape.
        weights: One weight each; negative ones negate.

    Returns:
        Tensor of the same shape and device, float32.

    Raises:
        MergeError: If the counts differ or are zero.
    """
    _check_counts(len(task_vectors), len(weights))
    total = task_vectors[0].to(torch.float32) * weights[0]
    for task_vector, weight in zip(task_vectors[1:], weights[1:], strict=True):
        total.add_(task_vector, alpha=weight)
    return total


def elect_sign(
    weighted: Sequence[Float32[Tensor, "*shape"]],
) -> Float32[Tensor, "*shape"]:
    """Return the sign that has the larger total magnitude, entry by entry.

    Computed as the sign of the sum. Where the sum is zero, +1, as in peft and mergekit.

    Args:
        weighted: One or more task vectors, weights already applied.

    Returns:
        +1 or -1 for each entry, float32; NaN nowhere (the sign of a NaN's sign bit).

    Raises:
        MergeError: If no task vector is given.

    References:
        Yadav et al., arXiv:2306.01708, algorithm 1, step 2 ("Elect"). Departure: the paper,
        and peft, elect before weighting; here, and in mergekit, after.
    """
    _check_counts(len(weighted), len(weighted))
    total = weighted[0].clone()
    for task_vector in weighted[1:]:
        total.add_(task_vector)
    # NOTE: + 0.0 turns a sum of negative zeros into +0, whose sign is +.
    return torch.copysign(torch.ones((), device=total.device), total.add_(0.0))


def disjoint_mean(
    task_vectors: Sequence[Float[Tensor, "*shape"]], weights: Sequence[float]
) -> Float32[Tensor, "*shape"]:
    """Elect signs, then return the weighted mean over the task vectors that agree.

    For each entry, with x_i = w_i tau_i and the elected sign s: the sum of the x_i whose sign
    is s, divided by the sum of their abs(w_i); 0 where none agrees. Zero entries (trimmed or
    dropped) agree with neither sign. Inputs are not changed.

    Args:
        task_vectors: One or more sparsified task vectors of one shape.
        weights: One weight each. Only their ratios matter, save for the sign: a negative
            weight negates its task vector.

    Returns:
        Tensor of the same shape and device, float32.

    Raises:
        MergeError: If the counts differ or are zero.

    References:
        Yadav et al., arXiv:2306.01708, algorithm 1, step 3 ("Disjoint Merge"), without weights.
        Equals mergekit's ``ties`` with ``normalize: true`` for weights >= 0; for negative
        ones mergekit divides by the signed sum, which undoes the negation; here abs(w_i).
        peft divides by the count instead: equal when all weights are 1.
    """
    _check_counts(len(task_vectors), len(weights))
    weighted = [
        task_vector.to(torch.float32) * weight
        for task_vector, weight in zip(task_vectors, weights, strict=True)
    ]
    return disjoint_mean_(weighted, weights)


def disjoint_mean_(
    weighted: Sequence[Float32[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    normalize: bool = True,
    signed: bool = False,
) -> Float32[Tensor, "*shape"]:
    """As `disjoint_mean`, from weighted task vectors that are used up as buffers.

    Args:
        weighted: The w_i tau_i; changed.
        weights: The w_i.
        normalize: Whether to divide by the agreeing weights; False gives the agreeing sum.
        signed: Whether to divide by the sum of the agreeing w_i themselves (by 1 where that is
            zero), as mergekit 0.1.5 does, not of their magnitudes.

    Returns:
        Tensor of the same shape and device, float32.
    """
    sign = elect_sign(weighted)
    total = torch.zeros_like(sign)
    divisor = torch.zeros_like(sign)
    for task_vector, weight in zip(weighted, weights, strict=True):
        agreeing = task_vector.mul_(sign).clamp_min_(0.0)
        total.add_(agreeing)
        divisor.add_(agreeing.sign_(), alpha=weight if signed else abs(weight))
    if not normalize:
        return total.mul_(sign)
    if signed:
        return total.div_(divisor.masked_fill_(divisor == 0.0, 1.0)).mul_(sign)
    # NOTE: where none agrees the total is 0, so any positive divisor gives 0.
    return total.div_(divisor.clamp_min_(torch.finfo(torch.float32).tiny)).mul_(sign)


def disjoint_mean_by_count_(
    task_vectors: Sequence[Float32[Tensor, "*shape"]],
    weights: Sequence[float],
    *,
    normalize: bool = True,
) -> Float32[Tensor, "*shape"]:
    """Elect signs unweighted, then add up w_i tau_i that agree, over their number: peft's TIES.

    Args:
        task_vectors: One or more sparsified task vectors of one shape, float32; used up as
            buffers.
        weights: One weight each, applied after the election.
        normalize: Whether to divide by the number that agree; False gives the agreeing sum.

    Returns:
        Tensor of the same shape and device, float32; 0 where none agrees.

    Raises:
        MergeError: If the counts differ or are zero.

    References:
        peft 0.21, ``merge_utils.ties`` with the ``total`` majority; at weights 1 the paper's
        algorithm 1 (arXiv:2306.01708).
    """
    _check_counts(len(task_vectors), len(weights))
    sign = elect_sign(task_vectors)
    total = torch.zeros_like(sign)
    count = torch.zeros_like(sign)
    for task_vector, weight in zip(task_vectors, weights, strict=True):
        agreeing = task_vector.mul_(sign).clamp_min_(0.0)
        total.add_(agreeing, alpha=weight)
        count.add_(agreeing.sign_())
    return (total.div_(count.clamp_min_(1.0)) if normalize else total).mul_(sign)


def consensus_of_masks(
    weighted: Sequence[Float32[Tensor, "*shape"]], *, threshold: float, min_agreeing: int
) -> Float32[Tensor, "*shape"]:
    """Return the sum of weighted task vectors, where enough of them need the entry.

    A task vector x_i needs an entry where abs(x_i) > threshold * abs(sum - x_i): its TALL mask.

    Args:
        weighted: The w_i tau_i, one or more of one shape, float32; not changed.
        threshold: How much an entry must stand out, >= 0.
        min_agreeing: How many must need an entry; elsewhere the result is 0.

    Returns:
        Tensor of the same shape and device, float32.

    Raises:
        MergeError: If no task vector is given.

    References:
        Wang et al., Localizing Task Information, arXiv:2405.07813, equation 4 (masks) and
        section 4.2 (consensus). Departure: one threshold for all tasks, where the paper tunes
        one for each on validation data; task vectors may be weighted.
    """
    _check_counts(len(weighted), len(weighted))
    total = weighted_sum(weighted, [1.0] * len(weighted))
    count = torch.zeros_like(total)
    for task_vector in weighted:
        count.add_(task_vector.abs() > torch.sub(total, task_vector).abs_().mul_(threshold))
    # NOTE: a product, not a choice, so that NaN in an entry stays NaN and is found.
    return total.mul_(count >= min_agreeing)


def _check_counts(num_task_vectors: int, num_weights: int) -> None:
    if num_task_vectors == 0 or num_task_vectors != num_weights:
        raise MergeError(
            f"consensus: one weight for each of one or more task vectors must be given; got "
            f"{num_task_vectors} task vectors, {num_weights} weights. Drop both or neither."
        )
