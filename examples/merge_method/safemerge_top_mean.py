"""A merge method of its own: the task vectors' mean, where it is largest."""

from typing import Annotated

import torch
from torch import Tensor

from safemerge.extension import Range, merge_method


@merge_method("top_mean", title="Top mean", citation="safemerge, examples/merge_method")
def top_mean(
    task_vectors: Tensor,
    weights: Tensor,
    *,
    density: Annotated[float, Range(0.0, 1.0, low_included=False)] = 1.0,
) -> Tensor:
    """Keep the largest entries of the task vectors' weighted sum, and drop the rest.

    Args:
        task_vectors: Experts less the base, shape (experts, *shape), float32.
        weights: Weight of each expert, shape (experts,).
        density: Fraction of the sum's entries that is kept, in (0, 1].
    """
    total = torch.tensordot(weights, task_vectors, dims=1)
    kept = max(1, int(density * total.numel()))
    least = total.abs().flatten().topk(kept).values[-1]
    return torch.where(total.abs() >= least, total, 0.0)
