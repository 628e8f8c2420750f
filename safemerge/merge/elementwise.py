"""Element-wise merging of a named tensor: shares of whole weights, and task vectors.

Both go over a tensor once, in blocks of entries that fit the processor's cache, so that float32
intermediates never reach main memory and peak memory is the result and little more: compiled
where there is a loop for it (`safemerge.merge.compiled`), else run by run in torch.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge import compiled
from safemerge.merge.consensus import (
    consensus_of_masks,
    disjoint_mean_,
    disjoint_mean_by_count_,
    weighted_sum,
)
from safemerge.merge.inputs import TensorInputs, gram, num_columns, runs
from safemerge.merge.interpolate import arc_shares, inner_products, linear_shares, pair_shares
from safemerge.merge.sparsify import Sparsify, sparsifier_of, sparsify_run_
from safemerge.merge.sphere import karcher_shares, multi_slerp_shares
from safemerge.merge.stock import stock_ratio
from safemerge.merge.threshold import RankedDrop, Sparsifier
from safemerge.merge.vectors import arcs_by_vector, stock_by_row

Sphere = Literal["multi_slerp", "karcher"]


def merge_linear(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor as a weighted sum of the models' weights; see `linear_shares`.

    Raises:
        MergeError: If the weights sum to zero and are normalised, or are all zero.
    """
    shares = linear_shares(
        inputs.coefficients.weights, normalize=inputs.normalize, where=inputs.where
    )
    return _sum_of_shares(inputs, shares)


def merge_passthrough(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Give one model's tensor, times ``scale``.

    Raises:
        MergeError: If the model is not given, or of another shape.
    """
    (name,) = inputs.models
    scale = inputs.coefficients.number("scale")
    if scale == 0.0:
        return inputs.rounded(torch.zeros_like(inputs.model(name)))
    return _sum_of_shares(inputs, {name: scale})


def merge_slerp(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by spherical interpolation of two models; see `arc_shares`.

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
    products = inputs.derived(
        ("inner products", first, second),
        lambda: inner_products(inputs.model(first), inputs.model(second)),
    )
    shares = arc_shares(products, t=t)
    return _sum_of_shares(inputs, dict(zip(inputs.models, shares, strict=True)))


def merge_nuslerp(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor by spherical interpolation at the ratio of two weights.

    As `merge_slerp`, of whole tensors or of each of their vectors, of weights or of task vectors;
    linear only where the two point exactly along one line.

    Raises:
        MergeError: If a tensor is missing, of another shape, or not finite.

    References:
        mergekit 0.1.5, ``nuslerp``.
    """
    shares = {name: at for name, at in pair_shares(inputs.coefficients.weights).items() if at}
    options = inputs.coefficients.options
    from_base = options["origin"] == "base"
    if len(shares) == 2 and inputs.base.numel():
        if options["vectors"] != "tensor":
            by_column = options["vectors"] == "columns"
            return inputs.rounded(
                arcs_by_vector(inputs, shares, from_base=from_base, by_column=by_column)
            )
        (first, second), t = shares, list(shares.values())[1]
        products = inputs.derived(
            ("inner products", first, second, from_base),
            lambda: inner_products(
                inputs.model(first),
                inputs.model(second),
                origin=inputs.base if from_base else None,
            ),
        )
        at_ends = arc_shares(products, t=t, parallel=None)
        shares = {first: at_ends[0], second: at_ends[1]}
    if from_base:
        return _walk(inputs, shares, {}, consensus="sum")
    return _sum_of_shares(inputs, shares)


def merge_on_sphere(inputs: TensorInputs, *, mean: Sphere) -> Float[Tensor, "..."]:
    """Merge one tensor as a mean of directions; see `multi_slerp_shares`, `karcher_shares`.

    Such a mean lies in the span of the models, so that it is found from their inner products
    alone and costs a weighted sum.

    Raises:
        MergeError: If an entry is not finite or the weights sum to zero.
    """
    weights = linear_shares(
        inputs.coefficients.weights, normalize=inputs.normalize, where=inputs.where
    )
    names = [name for name, weight in sorted(weights.items()) if weight]
    from_base = inputs.coefficients.options.get("origin") == "base"
    if len(names) == 1 and mean == "multi_slerp":
        return _sum_of_shares(inputs, {names[0]: 1.0})
    if len(names) < 2 or inputs.base.numel() == 0:
        return _sum_of_shares(inputs, weights)
    products = inputs.derived(
        ("gram of task vectors" if from_base else "gram", *names),
        lambda: gram(
            [inputs.model(name) for name in names],
            origin=inputs.base if from_base else None,
            where=inputs.where,
        ),
    )
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
    by_name = dict(zip(names, shares, strict=True))
    if from_base:
        return _walk(inputs, by_name, {}, consensus="sum")
    return _sum_of_shares(inputs, by_name)


def merge_model_stock(inputs: TensorInputs) -> Float[Tensor, "..."]:
    """Merge one tensor between the base and the experts' mean; see `stock_ratio`.

    Raises:
        MergeError: If an expert's tensor is missing, of another shape, or not finite.
    """
    names = list(inputs.active)
    if not names or inputs.base.numel() == 0:
        return inputs.untouched()
    options = inputs.coefficients.options
    clamped = options["variant"] == "clamped"
    if options["vectors"] == "rows" and inputs.base.ndim > 1:
        return inputs.plus(stock_by_row(inputs, names, clamped=clamped))
    products = inputs.derived(
        ("gram of task vectors", *names),
        lambda: gram(
            [inputs.model(name) for name in names], origin=inputs.base, where=inputs.where
        ),
    )
    share = float(stock_ratio(products, clamped=clamped)) / len(names)
    return _walk(inputs, dict.fromkeys(names, share), {}, consensus="sum")


def merge_task_vectors(
    inputs: TensorInputs, *, sparsify: Sparsify, consensus: str
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
    if consensus not in CONSENSUS:
        raise MergeError(
            f"{inputs.where}: the consensus must be one of {', '.join(CONSENSUS)}; got "
            f"{consensus!r}."
        )
    weights = inputs.active
    if not weights:
        return inputs.untouched()
    if consensus == "sum" and inputs.coefficients.options.get("normalize"):
        weights = linear_shares(weights, normalize=True, where=inputs.where)
    sparsifiers = {
        name: sparsifier
        for name in weights
        if (sparsifier := sparsifier_of(inputs, name, sparsify)) is not None
    }
    return _walk(inputs, weights, sparsifiers, consensus=consensus)


def _walk(
    inputs: TensorInputs,
    weights: Mapping[str, float],
    sparsifiers: Mapping[str, Sparsifier],
    *,
    consensus: str,
) -> Tensor:
    combine = CONSENSUS[consensus]
    merged = inputs.destination()
    if compiled.merge_task_vectors(inputs, weights, sparsifiers, consensus=consensus, out=merged):
        return merged
    ranked = any(isinstance(sparsifier, RankedDrop) for sparsifier in sparsifiers.values())
    flats = {name: inputs.model(name).flatten() for name in weights}
    base, out = inputs.base.flatten(), merged.view(-1)

    def merge_run(start: int, stop: int) -> None:
        origin = base[start:stop].to(torch.float32)
        task_vectors = []
        for name, flat in flats.items():
            task_vector = torch.sub(flat[start:stop], origin)
            if name in sparsifiers:
                sparsify_run_(
                    task_vector, sparsifiers[name], inputs=inputs, name=name, start=start
                )
            task_vectors.append(task_vector)
        total = combine(inputs, task_vectors, list(weights.values()))
        out[start:stop] = torch.add(origin, total, alpha=inputs.coefficients.lambda_)

    for run in runs(base, multiple=num_columns(inputs.base) if ranked else 1):
        merge_run(*run)
    return merged


def _sum(inputs: TensorInputs, task_vectors: list[Tensor], weights: list[float]) -> Tensor:
    return weighted_sum(task_vectors, weights)


def _disjoint_mean(
    inputs: TensorInputs, task_vectors: list[Tensor], weights: list[float]
) -> Tensor:
    options = inputs.coefficients.options
    if options.get("variant") == "peft":
        return disjoint_mean_by_count_(task_vectors, weights, normalize=inputs.normalize)
    weighted = [item.mul_(weight) for item, weight in zip(task_vectors, weights, strict=True)]
    signed = options.get("divisor") == "signed"
    return disjoint_mean_(weighted, weights, normalize=inputs.normalize, signed=signed)


def _agreement(inputs: TensorInputs, task_vectors: list[Tensor], weights: list[float]) -> Tensor:
    number = inputs.coefficients.number
    return consensus_of_masks(
        [item.mul_(weight) for item, weight in zip(task_vectors, weights, strict=True)],
        threshold=number("mask_threshold"),
        min_agreeing=int(number("min_agreeing")),
    )


CONSENSUS: dict[str, Callable[[TensorInputs, list[Tensor], list[float]], Tensor]] = {
    "sum": _sum,
    "disjoint_mean": _disjoint_mean,
    "agreement": _agreement,
}
"""How runs of task vectors, which may be written to, and their weights become one run."""


def _sum_of_shares(inputs: TensorInputs, shares: Mapping[str, float]) -> Tensor:
    used = {name: share for name, share in sorted(shares.items()) if share}
    if not used:
        raise MergeError(
            f"{inputs.where}: some weight must not be zero; got {dict(shares)}. "
            f"A merge of nothing has no weights: give the base a weight."
        )
    merged = inputs.destination()
    if compiled.sum_models(inputs, used, out=merged):
        return merged
    flats = [inputs.model(name).flatten() for name in used]
    out = merged.view(-1)
    for start, stop in runs(out):
        parts = [flat[start:stop] for flat in flats]
        out[start:stop] = weighted_sum(parts, list(used.values()))
    return merged
