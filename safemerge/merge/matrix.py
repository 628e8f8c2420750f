"""Merging by the singular vectors of whole matrices: TSV-M, Iso-C and Iso-CTS.

References:
    Gargiulo et al., Task Singular Vectors, arXiv:2412.00081.
    Marczak et al., No Task Left Behind: Isotropic Model Merging, arXiv:2502.04959.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from safemerge.merge.inputs import TensorInputs
from safemerge.merge.spectrum import Spectrum, decompose, leading, nearest_orthonormal
from safemerge.weights.kind import module_kind


def merge_tsv(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by its experts' orthogonalised singular vectors.

    For a matrix with N experts: the leading min(rows, columns) // N triplets of every task
    vector (one at least) are put side by side, left and right vectors are replaced by the
    nearest orthonormal ones, and the values, times the experts' weights, are put back between.
    Other tensors: the mean of w_i tau_i. Experts whose task vector is zero here don't count.

    Only the values depend on the weights, so the orthonormal factors are kept between
    candidates.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.

    References:
        arXiv:2412.00081, algorithm 1. Departures: weights per expert; directions beyond the
        numerical rank of a task vector, which the paper's matrices don't have, are left out.
    """
    weights = inputs.active
    if not weights:
        return inputs.untouched()
    if not is_matrix(inputs):
        return inputs.plus(mean_update(inputs, weights))
    experts = tuple(weights)
    spectra = None
    if inputs.spectra is not None:
        spectra = inputs.spectra.get(("tsv_m", *experts), inputs.tensor, device=inputs.base.device)
    if spectra is None:
        spectra = _orthogonalised(inputs, experts)
        if inputs.spectra is not None:
            inputs.spectra.put(("tsv_m", *experts), inputs.tensor, spectra)
    update = inputs.base.new_zeros(inputs.base.shape, dtype=torch.float32)
    for expert, spectrum in zip(experts, spectra, strict=True):
        update.addmm_(spectrum.left * (spectrum.values * weights[expert]), spectrum.right)
    return inputs.plus(update)


def merge_iso_c(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor as the sum of w_i tau_i with all singular values set to their mean.

    Other tensors than matrices: the mean of w_i tau_i.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.

    References:
        arXiv:2502.04959, algorithm 1. Departure: values and directions beyond the numerical
        rank are left out, the mean is over the rest.
    """
    weights = inputs.active
    if not weights:
        return inputs.untouched()
    if not is_matrix(inputs):
        return inputs.plus(mean_update(inputs, weights))
    summed = decompose(_summed(inputs, weights), where=inputs.where)
    if not len(summed.values):
        return inputs.untouched()
    return inputs.plus((summed.left @ summed.right).mul_(summed.values.mean()))


def merge_iso_cts(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor isotropically in common and task-specific directions.

    With r = min(rows, columns) and N experts, each expert gets round((1 - common_share) r / N)
    directions, at most r // N: the leading ones of what is left of w_i tau_i outside the common
    left directions. The rest are the leading directions of the sum of w_i tau_i. All are made
    orthonormal and get the mean of their singular values. Other tensors than matrices: the mean
    of w_i tau_i. Experts whose task vector is zero here don't count.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.

    References:
        arXiv:2502.04959, algorithm 2, with the counts of the authors' code. Departure:
        directions beyond the numerical rank are left out.
    """
    weights = inputs.active
    if not weights:
        return inputs.untouched()
    if not is_matrix(inputs):
        return inputs.plus(mean_update(inputs, weights))
    updates = weighted_updates(inputs, weights)
    if not updates:
        return inputs.untouched()
    rank, share = min(inputs.base.shape), inputs.coefficients.number("common_share")
    per_task = min(round((rank - int(share * rank)) / len(updates)), rank // len(updates))
    total = decompose(torch.stack(updates).sum(0), where=inputs.where)
    common = leading(total, rank - per_task * len(updates))
    parts = [
        leading(
            decompose(
                update - common.left @ (common.left.T @ update),
                where=inputs.where,
            ),
            per_task,
        )
        for update in updates
    ]
    joined = _joined([*parts, common])
    if not len(joined.values):
        return inputs.untouched()
    left = nearest_orthonormal(joined.left, where=inputs.where)
    right = nearest_orthonormal(joined.right, where=inputs.where)
    return inputs.plus((left @ right).mul_(joined.values.mean()))


def is_matrix(inputs: TensorInputs) -> bool:
    """Tell whether a tensor is merged as a matrix, by its shape, its name and ``embeddings``."""
    if inputs.base.ndim != 2 or inputs.base.numel() == 0:
        return False
    tables = inputs.coefficients.options.get("embeddings", "mean") == "matrix"
    return tables or module_kind(inputs.tensor) != "embeddings"


def task_vector(inputs: TensorInputs, name: str) -> Float32[Tensor, "..."]:
    """Return an expert's task vector, new memory, float32."""
    return torch.sub(inputs.model(name), inputs.base.to(torch.float32))


def weighted_updates(
    inputs: TensorInputs, weights: Mapping[str, float]
) -> list[Float32[Tensor, "..."]]:
    """Return w_i tau_i of each expert given, without those that are zero everywhere."""
    found = (task_vector(inputs, name).mul_(weight) for name, weight in weights.items())
    return [update for update in found if bool(update.any())]


def mean_update(inputs: TensorInputs, weights: dict[str, float]) -> Float32[Tensor, "..."]:
    """Return the mean of w_i tau_i over the experts given: what is not a matrix gets."""
    return _summed(inputs, weights).div_(len(weights))


def _summed(inputs: TensorInputs, weights: dict[str, float]) -> Tensor:
    total = torch.zeros_like(inputs.base, dtype=torch.float32)
    for name, weight in weights.items():
        total.add_(task_vector(inputs, name), alpha=weight)
    return total


def _orthogonalised(inputs: TensorInputs, experts: Sequence[str]) -> tuple[Spectrum, ...]:
    """Leading triplets of each expert, made orthonormal over all of them together."""
    spectra = [
        decompose(task_vector(inputs, name), where=f"{inputs.where}, expert '{name}'")
        for name in experts
    ]
    num_tasks = sum(len(spectrum.values) > 0 for spectrum in spectra)
    per_task = max(1, min(inputs.base.shape) // max(1, num_tasks))
    spectra = [leading(spectrum, per_task) for spectrum in spectra]
    joined = _joined(spectra)
    left = nearest_orthonormal(joined.left, where=inputs.where)
    right = nearest_orthonormal(joined.right, where=inputs.where)
    parts, first = [], 0
    for spectrum in spectra:
        last = first + len(spectrum.values)
        parts.append(Spectrum(left[:, first:last], spectrum.values, right[first:last]))
        first = last
    return tuple(parts)


def _joined(spectra: Sequence[Spectrum]) -> Spectrum:
    return Spectrum(
        torch.cat([spectrum.left for spectrum in spectra], dim=1),
        torch.cat([spectrum.values for spectrum in spectra]),
        torch.cat([spectrum.right for spectrum in spectra], dim=0),
    )
