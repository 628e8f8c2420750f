"""Safety operators: steps on an expert's weights before a method, or on its result after.

Each takes and gives one named tensor in float32. They are means to be searched and measured:
none is a guarantee (safety directions are not linearly distinct, arXiv:2505.14185).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from safemerge.config.step import Step
from safemerge.merge.measured import measured_tensor
from safemerge.merge.spectrum import Spectrum, SpectrumCache, decompose, leading
from safemerge.weights.kind import module_kind
from safemerge.weights.statistics import TensorStatistics


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


class Projection(NamedTuple):
    """An update's image under the alignment's projection, and how near the two are."""

    update: Float32[Tensor, "..."]
    """C Delta, of the update's shape."""
    cosine: float
    """Cosine between C Delta and Delta, in [0, 1]."""


def alignment_projection(
    update: Float32[Tensor, "*shape"], alignment: Float32[Tensor, "*shape"]
) -> Projection | None:
    """Project an update with C = V V^T / norm(V), where V is what alignment changed.

    Tensors of one dimension count as one column, those of more than two as matrices of their
    first dimension. Norms and inner products are Frobenius ones.

    Args:
        update: Delta, a model minus the base.
        alignment: V, the aligned minus the unaligned model.

    Returns:
        C Delta and its cosine with Delta; None if either tensor is zero or empty, which tells
        nothing about safety.

    References:
        arXiv:2405.16833, section 3.2, its fast form: C is not idempotent, and scales with
        norm(V).
    """
    rows = update.shape[0] if update.ndim > 1 else max(1, update.numel())
    if update.numel() == 0:
        return None
    delta, change = update.reshape(rows, -1), alignment.reshape(rows, -1)
    norm, length = _norm(change), _norm(delta)
    if norm == 0.0 or length == 0.0:
        return None
    image = (change @ (change.T @ delta)).div_(norm)
    image_length = _norm(image)
    if image_length == 0.0:
        return Projection(image.reshape(update.shape), 0.0)
    inner = float((image * delta).sum(dtype=torch.float64))
    return Projection(image.reshape(update.shape), inner / (image_length * length))


def _norm(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().sum(dtype=torch.float64)))


@dataclass(frozen=True)
class StepInputs:
    """All that one step needs to change one tensor."""

    tensor: str
    """Tensor name."""
    weights: Float32[Tensor, "..."]
    """What is changed: an expert's tensor, or the merged one. Not written to."""
    base: Float32[Tensor, "..."]
    read: Mapping[str, Float32[Tensor, "..."]]
    """The tensors of the models that the step reads, by the step's field."""
    numbers: Mapping[str, float]
    """The step's coefficients for this tensor, by field (``field.expert`` if by expert)."""
    expert: str = ""
    """The expert that is changed; empty for the merged tensor."""
    merged: tuple[str, ...] = ()
    """Every expert that the method merges."""
    statistics: Mapping[str, TensorStatistics] = field(default_factory=dict)
    """What was measured of them for this tensor, for steps that need it."""
    rank: int = 0
    """Singular directions that the step takes, for steps that take some."""
    spectra: SpectrumCache | None = None
    """Where singular vectors of the models that the step reads are kept between candidates."""
    kept_as: tuple[str, ...] = ()
    """Names that such vectors depend on beside the base; empty where they are not kept."""


def add_safety_vector(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return theta + scale (aligned - unaligned), RESTA's addition.

    References:
        arXiv:2402.11746, equation 2.
    """
    vector = inputs.read["aligned"] - inputs.read["unaligned"]
    return inputs.weights.add(vector, alpha=inputs.numbers["scale"])


def extrapolate_alignment(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return theta + alpha U_k U_k^T V, where V is what alignment changed (LoX).

    U_k are the left singular vectors of V = aligned - unaligned of its k largest singular values,
    so that U_k U_k^T V is V's best approximation of rank k. Only matrices are changed, and no
    embeddings; where alignment changed nothing theta stays. The triplets do not depend on alpha:
    they are kept between candidates.

    Raises:
        MergeError: If V has an entry that is not finite.

    References:
        arXiv:2506.15606: W_base + V + alpha Proj_k(V) with Proj_k(V) = U_k U_k^T V. Departures:
        it is added to any weights, the paper's are the aligned model's; embeddings and output
        head are left.
    """
    if inputs.weights.ndim != 2 or module_kind(inputs.tensor) == "embeddings":
        return inputs.weights
    (found,) = _alignment_spectra(inputs)
    change = (found.left * (found.values * inputs.numbers["alpha"])) @ found.right
    return inputs.weights + change


def _alignment_spectra(inputs: StepInputs) -> tuple[Spectrum, ...]:
    what = (f"lox {inputs.rank}", *inputs.kept_as)
    cache = inputs.spectra if inputs.kept_as else None
    if cache is not None:
        held = cache.get(what, inputs.tensor, device=inputs.weights.device)
        if held is not None:
            return held
    change = inputs.read["aligned"] - inputs.read["unaligned"]
    largest = leading(decompose(change, where=f"tensor '{inputs.tensor}'"), inputs.rank)
    # Copies: views of the whole decomposition would hold all of it.
    found = (Spectrum(*(part.clone() for part in largest)),)
    if cache is not None:
        cache.put(what, inputs.tensor, found)
    return found


def project_update(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return base + C Delta where cos(C Delta, Delta) <= threshold, else theta (Safe LoRA).

    Only matrices are projected, and no embeddings: what LoRA adapts.

    References:
        arXiv:2405.16833, equation 4; see `alignment_projection`.
    """
    if inputs.weights.ndim != 2 or module_kind(inputs.tensor) == "embeddings":
        return inputs.weights
    projection = alignment_projection(
        inputs.weights - inputs.base, inputs.read["aligned"] - inputs.read["unaligned"]
    )
    if projection is None or projection.cosine > inputs.numbers["threshold"]:
        return inputs.weights
    return projection.update.add_(inputs.base)


def mix_update(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return (1 - alpha) theta + alpha safe where the cosine is below the threshold, else theta.

    The cosine is Safe LoRA's, taken for every tensor. Where nothing tells (an update or an
    alignment of zero) theta stays.

    References:
        arXiv:2503.17239, equations 2 and 3. Departure: published for LoRA's matrices; here for
        the whole weights of any model.
    """
    projection = alignment_projection(
        inputs.weights - inputs.base, inputs.read["aligned"] - inputs.read["unaligned"]
    )
    if projection is None or projection.cosine >= inputs.numbers["threshold"]:
        return inputs.weights
    return inputs.weights.lerp(inputs.read["safe"], inputs.numbers["alpha"])


def mix_aligned(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return alpha theta + (1 - alpha) aligned, MergeAlign's interpolation.

    References:
        arXiv:2411.06824, section 3: base + alpha tau_domain + (1 - alpha) tau_align, which is
        the same, for the base cancels.
    """
    return inputs.weights.lerp(inputs.read["aligned"], 1.0 - inputs.numbers["alpha"])


def mix_before(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return (1 - alpha) before + alpha theta: weights before and after tuning, merged.

    References:
        arXiv:2412.19512, equation 1.
    """
    return inputs.weights.lerp(inputs.read["before"], 1.0 - inputs.numbers["alpha"])


def keep_own_important(inputs: StepInputs) -> Float32[Tensor, "..."]:
    """Return theta where an entry is important to this expert alone, else the base (LED).

    An entry is elected for an expert if it is among the most important ones of the expert and,
    on the expert's rows, of the base; entries elected for another merged expert are left to
    neither.

    Raises:
        MergeError: If a merged expert's importance is missing, of another shape or not finite.

    References:
        arXiv:2502.16770, location, election and disjoint merging; thresholds per tensor as in
        the authors' code.
    """
    kept = _elected(inputs, inputs.expert)
    for name in inputs.merged:
        if name != inputs.expert:
            kept &= ~_elected(inputs, name)
    return torch.where(kept, inputs.weights, inputs.base)


def _elected(inputs: StepInputs, name: str) -> Bool[Tensor, "..."]:
    numbers = inputs.numbers
    density = numbers["density"] if "density" in numbers else numbers[f"density.{name}"]
    of_expert, of_base = (
        most_important(
            measured_tensor(
                inputs.statistics,
                name,
                scores,
                shape=tuple(inputs.weights.shape),
                where=f"tensor '{inputs.tensor}'",
            ),
            density=density,
        )
        for scores in ("importance", "base_importance")
    )
    return of_expert & of_base


FUNCTIONS: Mapping[str, Callable[[StepInputs], Tensor]] = MappingProxyType(
    {
        "resta": add_safety_vector,
        "lox": extrapolate_alignment,
        "safe_lora": project_update,
        "safe_merge": mix_update,
        "merge_align": mix_aligned,
        "pre_post": mix_before,
        "led": keep_own_important,
    }
)
"""Every safety operator by name: one tensor and its companions to the changed tensor."""


def is_idle(step: Step, numbers: Mapping[str, float]) -> bool:
    """Tell whether a step changes nothing at its coefficients, and so reads nothing.

    Args:
        step: A step of a recipe.
        numbers: Its coefficients for a tensor.

    Returns:
        Whether a coefficient is at the value that leaves the weights as they are.
    """
    return any(numbers[field] == value for field, value in step.idle.items())
