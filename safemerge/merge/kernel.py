"""Element-wise merging of a named tensor: shares of whole weights, and task vectors.

Both walk over a tensor in runs of entries that fit the processor's cache, so that float32
intermediates never reach main memory and peak memory is the result and little more.
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.consensus import (
    consensus_of_masks,
    disjoint_mean_,
    disjoint_mean_by_count_,
    weighted_sum,
)
from safemerge.merge.inputs import TensorInputs, gram, runs
from safemerge.merge.interpolate import linear_shares, slerp_shares
from safemerge.merge.magprune import prune_rows_
from safemerge.merge.sparsify import (
    Threshold,
    drop_and_rescale_,
    num_kept,
    threshold_of_magnitudes,
    trim_,
)
from safemerge.merge.sphere import karcher_shares, multi_slerp_shares
from safemerge.merge.stock import stock_ratio

Sparsify = Literal["none", "magnitude", "random", "rank", "outliers"]
Consensus = Literal["sum", "disjoint_mean", "agreement"]
Sphere = Literal["multi_slerp", "karcher"]

_SMALL_NORM = 1e-7
"""L1 norms below this are not rescaled to or from, as in mergekit."""

_Sparsifier = Callable[[Tensor, int], None]
"""Changes a run of a task vector in place, given its first flat index."""


def merge_linear(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor as a weighted sum of the models' weights; see `linear_shares`.

    Raises:
        MergeError: If the weights sum to zero and are normalised, or are all zero.
    """
    shares = linear_shares(
        inputs.coefficients.weights, normalize=inputs.normalize, where=inputs.where
    )
    return _sum_of_shares(inputs, shares)


def merge_slerp(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by spherical interpolation of two models; see `slerp_shares`.

    Raises:
        MergeError: If the number of models is not 2 or an entry is not finite.
    """
    if len(inputs.models) != 2:
        raise MergeError(
            f"{inputs.where}: slerp must have two models; got {len(inputs.models)}. Name two."
        )
    first, second = inputs.models
    t = inputs.coefficients.t
    if t in (0.0, 1.0):
        return _sum_of_shares(inputs, {first: 1.0 - t, second: t})
    shares = slerp_shares(inputs.model(first), inputs.model(second), t=t)
    return _sum_of_shares(inputs, dict(zip(inputs.models, shares, strict=True)))


def merge_on_sphere(inputs: TensorInputs, *, mean: Sphere) -> Float[Tensor, "..."]:
    """Merge one tensor as a mean of directions; see `multi_slerp_shares`, `karcher_shares`.

    Such a mean lies in the span of the models, so that it is found from their inner products
    alone and costs a weighted sum.

    Raises:
        MergeError: If an entry is not finite or the weights sum to zero.
    """
    weights = linear_shares(inputs.coefficients.weights, normalize=True, where=inputs.where)
    names = [name for name, weight in sorted(weights.items()) if weight]
    if len(names) < 2 or inputs.base.numel() == 0:
        return _sum_of_shares(inputs, weights)
    products = gram([inputs.model(name) for name in names], where=inputs.where)
    given = [weights[name] for name in names]
    if mean == "karcher":
        shares = karcher_shares(
            products,
            given,
            num_steps=int(inputs.coefficients.number("num_steps")),
            tolerance=inputs.coefficients.number("tolerance"),
        )
    else:
        tangent = inputs.coefficients.options["variant"] == "tangent"
        shares = multi_slerp_shares(products, given, tangent=tangent)
    return _sum_of_shares(inputs, dict(zip(names, shares, strict=True)))


def merge_model_stock(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor between the base and the experts' mean; see `stock_ratio`.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.
    """
    names = list(inputs.active)
    if not names or inputs.base.numel() == 0:
        return inputs.untouched()
    products = gram([inputs.model(name) for name in names], origin=inputs.base, where=inputs.where)
    share = stock_ratio(products) / len(names)
    return _walk(inputs, dict.fromkeys(names, share), {}, consensus="sum")


def merge_task_vectors(
    inputs: TensorInputs, *, sparsify: Sparsify, consensus: Consensus
) -> Float[Tensor, "..."]:
    """Merge one tensor as base + lambda * consensus of sparsified task vectors.

    Experts of weight zero take no part; with none left, or lambda zero, the result is the base
    bit for bit. Experts are taken in the order of their names, so that the order in which a
    recipe lists them changes nothing.

    Args:
        inputs: Tensors and coefficients; not changed.
        sparsify: ``none``, ``magnitude`` (trim), ``random`` (drop and rescale), ``rank`` (drop
            by magnitude rank) or ``outliers`` (trim at both ends).
        consensus: ``sum`` of w_i tau_i, ``disjoint_mean`` after a sign election, or
            ``agreement``, the sum where enough experts need the entry.

    Returns:
        New tensor of the base's shape and device.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.
    """
    weights = inputs.active
    if not weights:
        return inputs.untouched()
    sparsifiers = {
        name: sparsifier
        for name in weights
        if (sparsifier := _sparsifier(inputs, name, sparsify)) is not None
    }
    multiple = _num_columns(inputs.base) if sparsify == "rank" else 1
    return _walk(inputs, weights, sparsifiers, consensus=consensus, multiple=multiple)


def _walk(
    inputs: TensorInputs,
    weights: Mapping[str, float],
    sparsifiers: Mapping[str, _Sparsifier],
    *,
    consensus: Consensus,
    multiple: int = 1,
) -> Tensor:
    flats = {name: inputs.model(name).flatten() for name in weights}
    base = inputs.base.flatten()
    merged = torch.empty(base.shape, dtype=inputs.dtype, device=base.device)
    for start, stop in runs(base, multiple=multiple):
        origin = base[start:stop].to(torch.float32)
        task_vectors = []
        for name, flat in flats.items():
            task_vector = torch.sub(flat[start:stop], origin)
            if name in sparsifiers:
                sparsifiers[name](task_vector, start)
            task_vectors.append(task_vector)
        total = _consensus(inputs, task_vectors, list(weights.values()), consensus)
        merged[start:stop] = torch.add(origin, total, alpha=inputs.coefficients.lambda_)
    return merged.reshape(inputs.base.shape)


def _consensus(
    inputs: TensorInputs, task_vectors: list[Tensor], weights: list[float], consensus: Consensus
) -> Tensor:
    options = inputs.coefficients.options
    if consensus == "sum":
        return weighted_sum(task_vectors, weights)
    if consensus == "disjoint_mean" and options.get("variant") == "peft":
        return disjoint_mean_by_count_(task_vectors, weights, normalize=inputs.normalize)
    weighted = [
        task_vector.mul_(weight) for task_vector, weight in zip(task_vectors, weights, strict=True)
    ]
    if consensus == "disjoint_mean":
        return disjoint_mean_(weighted, weights, normalize=inputs.normalize)
    return consensus_of_masks(
        weighted,
        threshold=inputs.coefficients.number("mask_threshold"),
        min_agreeing=int(inputs.coefficients.number("min_agreeing")),
    )


def _sparsifier(inputs: TensorInputs, name: str, sparsify: Sparsify) -> _Sparsifier | None:
    if sparsify == "none" or inputs.base.numel() == 0:
        return None
    if sparsify == "magnitude":
        return _trimmer(inputs, name)
    if sparsify == "outliers":
        return _outlier_trimmer(inputs, name)
    rescale = inputs.coefficients.options.get("rescale", "probability")
    drop = _ranked(inputs, name) if sparsify == "rank" else _dropper(inputs, name)
    if rescale != "l1" or inputs.coefficients.density[name] == 1.0:
        return drop
    ratio = _norm_ratio(inputs, name, drop)

    def drop_to_norm(task_vector: Tensor, start: int) -> None:
        drop(task_vector, start)
        task_vector.mul_(ratio)

    return drop_to_norm


def _trimmer(inputs: TensorInputs, name: str) -> _Sparsifier | None:
    density = inputs.coefficients.density[name]
    kept = num_kept(density, inputs.base.numel())
    if density == 1.0:
        return None
    threshold = _threshold(inputs, name, kept)
    return lambda task_vector, start: trim_(task_vector, threshold, start=start)


def _outlier_trimmer(inputs: TensorInputs, name: str) -> _Sparsifier | None:
    count = inputs.base.numel()
    kept = num_kept(inputs.coefficients.density[name], count)
    num_top = min(math.floor(inputs.coefficients.number("gamma") * count), count - kept)
    if inputs.coefficients.density[name] == 1.0:
        return None
    lower = _threshold(inputs, name, kept + num_top)
    if num_top == 0:
        return lambda task_vector, start: trim_(task_vector, lower, start=start)
    upper = _threshold(inputs, name, num_top)

    def trim_both_ends(task_vector: Tensor, start: int) -> None:
        top = task_vector.clone()
        trim_(top, upper, start=start)
        trim_(task_vector, lower, start=start)
        task_vector.sub_(top)

    return trim_both_ends


def _dropper(inputs: TensorInputs, name: str) -> _Sparsifier:
    density = inputs.coefficients.density[name]
    rescale = inputs.coefficients.options.get("rescale", "probability") == "probability"

    def drop(task_vector: Tensor, start: int) -> None:
        drop_and_rescale_(
            task_vector,
            density=density,
            seed=inputs.seed,
            tensor=inputs.tensor,
            expert=name,
            start=start,
            rescale=rescale,
        )

    return drop


def _ranked(inputs: TensorInputs, name: str) -> _Sparsifier:
    num_columns = _num_columns(inputs.base)

    def drop(task_vector: Tensor, start: int) -> None:
        prune_rows_(
            task_vector.view(-1, num_columns),
            density=inputs.coefficients.density[name],
            epsilon=inputs.coefficients.number("epsilon"),
            rescale=inputs.coefficients.options["rescale"] == "probability",
            seed=inputs.seed,
            tensor=inputs.tensor,
            expert=name,
            start=start,
        )

    return drop


def _num_columns(tensor: Tensor) -> int:
    """Entries of a row, along the last dimension; a vector is one row."""
    return max(1, tensor.shape[-1] if tensor.ndim else 1)


def _norm_ratio(inputs: TensorInputs, name: str, drop: _Sparsifier) -> float:
    """L1 norm of a task vector over that of what is kept of it; 1 where either is tiny."""
    flat, base = inputs.model(name).flatten(), inputs.base.flatten()
    before = after = 0.0
    for start, stop in runs(base, multiple=_num_columns(inputs.base)):
        part = torch.sub(flat[start:stop], base[start:stop].to(torch.float32))
        before += float(part.abs().sum(dtype=torch.float64))
        drop(part, start)
        after += float(part.abs().sum(dtype=torch.float64))
    return before / after if min(before, after) >= _SMALL_NORM else 1.0


def _threshold(inputs: TensorInputs, name: str, kept: int) -> Threshold:
    if inputs.thresholds is not None:
        held = inputs.thresholds.get(name, inputs.tensor, kept)
        if held is not None:
            return held
    threshold = _computed_threshold(
        inputs.model(name).flatten(),
        inputs.base.flatten(),
        kept=kept,
        where=f"{inputs.where}, expert '{name}'",
    )
    if inputs.thresholds is not None:
        inputs.thresholds.put(name, inputs.tensor, kept, threshold)
    return threshold


def _computed_threshold(flat: Tensor, base: Tensor, *, kept: int, where: str) -> Threshold:
    if flat.dtype == base.dtype and torch.equal(flat, base):
        # NOTE: weights that were frozen in training are common; there is nothing to sort.
        return Threshold(0.0, base.numel() - 1)
    magnitudes = torch.empty(base.shape, dtype=torch.float32, device=base.device)
    for start, stop in runs(base):
        part = magnitudes[start:stop]
        torch.sub(flat[start:stop], base[start:stop].to(torch.float32), out=part).abs_()
    return threshold_of_magnitudes(magnitudes, kept=kept, where=where)


def _sum_of_shares(inputs: TensorInputs, shares: Mapping[str, float]) -> Tensor:
    used = {name: share for name, share in sorted(shares.items()) if share}
    if not used:
        raise MergeError(
            f"{inputs.where}: some weight must not be zero; got {dict(shares)}. "
            f"A merge of nothing has no weights: give the base a weight."
        )
    flats = [inputs.model(name).flatten() for name in used]
    merged = torch.empty(inputs.base.numel(), dtype=inputs.dtype, device=inputs.base.device)
    for start, stop in runs(merged):
        parts = [flat[start:stop] for flat in flats]
        merged[start:stop] = weighted_sum(parts, list(used.values()))
    return merged.reshape(inputs.base.shape)
