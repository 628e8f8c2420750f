"""WUDI: the merged task vector that interferes least with each task, per linear layer.

References:
    Cheng et al., Whoever Started the Interference Should End It, arXiv:2503.08099.
"""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.inputs import TensorInputs
from safemerge.merge.matrix import is_matrix, mean_update, weighted_updates

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


def merge_wudi(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by minimising the interference with the w_i tau_i.

    Other tensors than matrices: the mean of w_i tau_i. A task vector that is zero here does not
    count.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite; or the
            steps diverge.
    """
    weights = inputs.active
    if not weights:
        return inputs.untouched()
    if not is_matrix(inputs):
        return inputs.plus(mean_update(inputs, weights))
    updates = weighted_updates(inputs, weights)
    if not updates:
        return inputs.untouched()
    stacked = torch.stack(updates)
    if not bool(torch.isfinite(stacked).all()):
        raise MergeError(
            f"{inputs.where}: entries must be finite; got NaN or infinite ones in an expert. "
            f"Check the checkpoint."
        )
    if inputs.coefficients.options["solver"] == "exact":
        return inputs.plus(least_interference(stacked))
    return inputs.plus(
        reduce_interference(
            stacked,
            num_steps=int(inputs.coefficients.number("num_steps")),
            learning_rate=inputs.coefficients.number("learning_rate"),
        )
    )


def reduce_interference(
    updates: Float32[Tensor, "experts rows columns"], *, num_steps: int, learning_rate: float
) -> Float32[Tensor, "rows columns"]:
    """Take steps of Adam on the interference, from the sum of the task vectors.

    The objective is the sum over experts of norm((X - tau_i) tau_i^T)^2 / norm(tau_i)^2
    (Frobenius norms). It is quadratic: its gradient is g0 + (X - X0) H, with H = 2 sum of
    tau_i^T tau_i / norm(tau_i)^2, so that a step costs one product of matrices, whatever the
    number of experts. Nothing is drawn at random.

    Args:
        updates: Task vectors of one matrix, weights applied; none of them zero.
        num_steps: Steps of Adam, without weight decay.
        learning_rate: Length of a step for each entry, about.

    Returns:
        The merged task vector; a single one is returned as it is.

    References:
        arXiv:2503.08099, equation 8 and algorithm 1: Adam, 300 steps, learning rate 1e-5.
    """
    start, gradient, curvature = _quadratic(updates)
    moved = torch.zeros_like(start)
    mean, square = torch.zeros_like(start), torch.zeros_like(start)
    for step in range(1, num_steps + 1):
        slope = torch.addmm(gradient, moved, curvature)
        mean.lerp_(slope, 1.0 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1.0 - _BETAS[1])
        size = (square / (1.0 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
        moved.addcdiv_(mean, size, value=-learning_rate / (1.0 - _BETAS[0] ** step))
    return start + moved


def least_interference(
    updates: Float32[Tensor, "experts rows columns"],
) -> Float32[Tensor, "rows columns"]:
    """Return the minimum of the interference that is nearest to the sum of task vectors.

    The minimum is X0 - g0 H^+; where H is singular (inputs that no task vector reads) nothing
    forces a change, and X0 stays.

    Args:
        updates: Task vectors of one matrix, weights applied; none of them zero.

    Returns:
        The merged task vector.

    References:
        The limit of arXiv:2503.08099, algorithm 1, for many small steps. Departure: the paper
        stops earlier, on purpose.
    """
    start, gradient, curvature = _quadratic(updates)
    values, vectors = torch.linalg.eigh(curvature.to(torch.float64))
    limit = len(values) * torch.finfo(torch.float32).eps * float(values[-1])
    inverse = torch.where(values > limit, 1.0 / values.clamp_min(limit or 1.0), 0.0)
    change: Tensor = ((gradient.to(torch.float64) @ vectors) * inverse) @ vectors.T
    return start - change.to(torch.float32)


def _quadratic(updates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sum X0 of the task vectors, the gradient there, and the curvature."""
    start = updates.sum(0)
    gradient = torch.zeros_like(start)
    curvature = start.new_zeros(start.shape[1], start.shape[1])
    for update in updates:
        scale = 2.0 / float(update.square().sum(dtype=torch.float64))
        gradient.addmm_((start - update) @ update.T, update, alpha=scale)
        curvature.addmm_(update.T, update, alpha=scale)
    return start, gradient, curvature
