"""Merge methods as a recipe declares them: parameters, ranges and defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, Tag, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name, Quantity
from safemerge.config.coefficient import (
    FORM,
    Coefficient,
    Density,
    Layerwise,
    Number,
    Share,
    leaves,
)

Rescale = Literal["probability", "l1", "none"]
Consensus = Literal["mergekit", "peft"]


class MethodSpec(StrictModel):
    """What every merge method shares: which fields are coefficients, which models it names."""

    takes_base: ClassVar[bool] = False
    """Whether the base may be one of the merged models."""
    statistic: ClassVar[Quantity | None] = None
    """What must have been measured of every model that is merged."""

    def coefficients(self) -> Iterator[tuple[str, Number]]:
        """Yield (dotted field, coefficient) for every layer-wise coefficient.

        Whole numbers and flags, which hold for all layers, are not among them.
        """
        for field, info in type(self).model_fields.items():
            value = getattr(self, field)
            label = info.alias or field
            if field == "weights" or (field == "density" and isinstance(value, dict)):
                yield from ((f"{label}.{name}", item) for name, item in value.items())
            elif field in LAYERWISE:
                yield label, value

    def model_names(self) -> frozenset[str]:
        """Names of the models that the method merges."""
        models = getattr(self, "models", None)
        return frozenset(getattr(self, "weights", {}) if models is None else models)


LAYERWISE = frozenset(
    {"t", "lambda_", "density", "epsilon", "gamma", "mask_threshold", "off_diagonal"}
)
"""Fields, weights aside, whose value may differ from layer to layer."""


class _Mean(MethodSpec):
    takes_base: ClassVar[bool] = True

    weights: dict[str, Coefficient] = Field(min_length=1)
    """Weight by model name, ``base`` model included by its own name; unnamed models get 0."""


class _TaskVectors(MethodSpec):
    weights: dict[str, Coefficient] = Field(min_length=1)
    """Weight by expert name; experts left out get 0."""
    lambda_: Coefficient = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector, usually in [0, 2]."""


class _Sparse(_TaskVectors):
    density: Annotated[
        Annotated[Density, Tag("number")]
        | Annotated[list[Density], Tag("anchors"), Field(min_length=2)]
        | Annotated[dict[str, Layerwise[Density]], Tag("mapping")],
        FORM,
    ] = 0.5
    """Fraction of each task vector's entries kept, in (0, 1]: for all experts, or by expert."""


class _Elected(_Sparse):
    variant: Consensus = "mergekit"
    """Sign election and mean: ``mergekit`` weights first and divides by the agreeing weights;
    ``peft`` elects unweighted and divides by the number of agreeing experts."""
    normalize: bool = True
    """Divide by the agreeing weights (or experts); false adds the agreeing entries up."""


class Linear(_Mean):
    """Weighted mean of weights, a model soup: sum of w_i theta_i (arXiv:2203.05482)."""

    name: Literal["linear"]
    normalize: bool = True
    """Divide by the sum of the weights, per layer group."""


class Slerp(MethodSpec):
    """Spherical interpolation between two models, per tensor (Shoemake 1985)."""

    takes_base: ClassVar[bool] = True

    name: Literal["slerp"]
    models: list[Name] = Field(min_length=2, max_length=2)
    """The models at t = 0 and t = 1; each is the base or an expert."""
    t: Layerwise[Share]
    """Position between the two, in [0, 1]."""


class MultiSlerp(_Mean):
    """Spherical interpolation of several models: one step in a tangent space."""

    name: Literal["multi_slerp"]
    variant: Literal["tangent", "mergekit"] = "tangent"
    """``tangent``: logarithm and exponential map at the normalised mean, which is slerp for two
    models at equal weights; ``mergekit``: its projection comes to the normalised mean itself."""


class Karcher(_Mean):
    """Weighted Karcher mean of the models' directions, times their mean norm, per tensor."""

    name: Literal["karcher"]
    num_steps: int = Field(default=100, ge=1, le=10_000)
    """Most steps; the mean stops when a step is shorter than `tolerance`."""
    tolerance: float = Field(default=1e-9, gt=0.0, lt=1.0)
    """Angle in radians below which a step ends the iteration."""


class TaskArithmetic(_TaskVectors):
    """base + lambda * sum of w_i tau_i; negative weights negate (arXiv:2212.04089)."""

    name: Literal["task_arithmetic"]


class Ties(_Elected):
    """Trim by magnitude, elect a sign, mean over the agreeing (arXiv:2306.01708)."""

    name: Literal["ties"]


class DareLinear(_Sparse):
    """Drop entries at random, rescale the rest, add up (arXiv:2311.03099)."""

    name: Literal["dare_linear"]
    rescale: Rescale = "probability"
    """``probability``: by 1/density, as the paper and peft; ``l1``: to the task vector's L1
    norm, as mergekit; ``none``."""


class DareTies(_Elected):
    """Drop and rescale as DARE, then elect signs as TIES (arXiv:2311.03099)."""

    name: Literal["dare_ties"]
    rescale: Rescale = "probability"
    """As for ``dare_linear``."""


class _Della(_Sparse):
    epsilon: Layerwise[Annotated[float, Field(ge=0.0, lt=0.5)]] = 0.15
    """Keep probabilities run from density - epsilon (smallest magnitude of a row) to
    density + epsilon (largest); both must be in (0, 1]. Density 1 keeps everything."""
    rescale: Rescale = "probability"
    """``probability``: each entry by 1 over its own keep probability, as the paper; ``l1``: to
    the task vector's L1 norm, as mergekit; ``none``."""

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        by_expert = self.density if isinstance(self.density, dict) else {"": self.density}
        dropping = [at for item in by_expert.values() for at in _below_one(item)]
        widest = max(leaves(self.epsilon))
        if (
            dropping
            and widest > 0.0
            and not widest < min(min(dropping), 1.0 - max(dropping) + 1e-12)
        ):
            raise ValueError(
                f"density - epsilon and density + epsilon must be in (0, 1); got density "
                f"{min(dropping):g} to {max(dropping):g}, epsilon {widest:g}. "
                f"Make epsilon smaller."
            )
        return self


def _below_one(density: Number) -> Iterator[float]:
    """Yield the densities that drop something; anchors below 1 anywhere do so in between."""
    if isinstance(density, dict):
        for item in density.values():
            yield from _below_one(item)
    else:
        values = list(leaves(density))
        yield from values if min(values) < 1.0 else ()


class DellaLinear(_Della):
    """Drop by magnitude rank at random, rescale, add up (arXiv:2406.11617)."""

    name: Literal["della_linear"]


class Della(_Elected, _Della):
    """Drop by magnitude rank at random, rescale, elect signs, mean (arXiv:2406.11617)."""

    name: Literal["della"]


class _Breadcrumbs(_Sparse):
    gamma: Layerwise[Annotated[float, Field(ge=0.0, lt=1.0)]] = 0.01
    """Fraction of entries of largest magnitude that is dropped; less where density leaves no
    room for it, so that density always holds."""


class Breadcrumbs(_Breadcrumbs):
    """Drop the largest and the smallest entries, add up (arXiv:2312.06795)."""

    name: Literal["breadcrumbs"]


class BreadcrumbsTies(_Elected, _Breadcrumbs):
    """Drop the largest and the smallest entries, then elect signs as TIES."""

    name: Literal["breadcrumbs_ties"]


class ModelStock(MethodSpec):
    """Between base and the experts' mean, at the place the angles tell (arXiv:2403.19522)."""

    name: Literal["model_stock"]
    models: list[Name] = Field(min_length=1)
    """Experts that are averaged; the paper has two or more."""
    lambda_: Coefficient = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector; the paper's is 1."""


class ConsensusTa(_TaskVectors):
    """Task arithmetic on the entries that several experts need (arXiv:2405.07813)."""

    name: Literal["consensus_ta"]
    mask_threshold: Layerwise[Annotated[float, Field(ge=0.0)]] = 0.4
    """An expert needs an entry where abs(w_i tau_i) exceeds this times abs(sum - w_i tau_i);
    the paper searches 0.2 to 0.6."""
    min_agreeing: int = Field(default=2, ge=1)
    """Experts that must need an entry for it to be kept: 2 drops what is selfish or
    catastrophic, 1 the catastrophic alone."""

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.min_agreeing > len(self.weights):
            raise ValueError(
                f"min_agreeing must not exceed the number of weights; got {self.min_agreeing} "
                f"and {len(self.weights)}, which keeps nothing. Lower it."
            )
        return self


class _Matrix(_TaskVectors):
    embeddings: Literal["mean", "matrix"] = "mean"
    """Whether embeddings and output head, tables rather than maps, are averaged as tensors of
    one dimension are, or merged as matrices (slow: as large as the vocabulary)."""


class TsvM(_Matrix):
    """Merge of orthogonalised task singular vectors, per matrix (arXiv:2412.00081)."""

    name: Literal["tsv_m"]


class IsoC(_Matrix):
    """Sum of task vectors with all singular values equal, per matrix (arXiv:2502.04959)."""

    name: Literal["iso_c"]


class IsoCts(_Matrix):
    """Iso-C in common and task-specific directions, per matrix (arXiv:2502.04959)."""

    name: Literal["iso_cts"]
    common_share: Share = 0.8
    """Share of a matrix's rank given to the common directions."""


class Wudi(_Matrix):
    """Least interference with every task vector, per linear layer (arXiv:2503.08099)."""

    name: Literal["wudi"]
    solver: Literal["adam", "exact"] = "adam"
    """``adam``: the paper's steps from the sum of task vectors; ``exact``: where they lead, the
    minimum nearest to that sum, in one decomposition."""
    num_steps: int = Field(default=300, ge=1, le=100_000)
    """Steps of Adam."""
    learning_rate: float = Field(default=1e-5, gt=0.0)
    """Adam's step, in units of the weights."""


Positive = Annotated[float, Field(ge=0.0)]


class _Measured(MethodSpec):
    takes_base: ClassVar[bool] = True

    weights: dict[str, Layerwise[Positive]] = Field(min_length=1)
    """Weight by model name, at least 0, ``base`` model included by its own name; only ratios
    count. The papers' is 1 for each. Every model named needs statistics."""


class Fisher(_Measured):
    """Mean weighted, entry by entry, by diagonal Fisher information (arXiv:2111.09832)."""

    statistic: ClassVar[Quantity | None] = "fisher"

    name: Literal["fisher"]
    normalize: bool = True
    """Divide each model's weight by the Euclidean norm of its whole Fisher diagonal, so that a
    model with larger gradients everywhere does not count for more."""
    floor: Annotated[float, Field(ge=0.0)] = 1e-6
    """Least Fisher entry, before it is divided by the norm."""
    floor_unit: Literal["absolute", "mean"] = "absolute"
    """``absolute``: as the authors'; ``mean``: times the mean entry of the model's Fisher. The
    entries of a large model are far below 1e-6: there, an absolute floor gives the plain mean."""
    target: Name | None = None
    """The model that alone gets the floor, so that entries of which no model knows anything stay
    near its own (the authors' ``favor_target_model``); null floors them all."""

    @model_validator(mode="after")
    def _known_target(self) -> Self:
        if self.target is not None and self.target not in self.weights:
            raise ValueError(
                f"target must be one of the merged models; got {self.target!r} with weights of "
                f"{sorted(self.weights)}."
            )
        return self


class RegMean(_Measured):
    """Per linear layer, the least-squares fit of all models' outputs (arXiv:2212.09849)."""

    statistic: ClassVar[Quantity | None] = "gram"

    name: Literal["regmean"]
    off_diagonal: Layerwise[Share] = 0.9
    """Factor of the Gram matrices' off-diagonal entries, in [0, 1]; usually 0.1 to 1. At 1 the
    fit is exact and may be singular; at 0 each input counts by itself."""
    ridge: Annotated[float, Field(ge=0.0)] = 0.0
    """Added to every Gram matrix's diagonal, times its mean diagonal entry: inputs that no
    model's data reached get the mean weights. 0 refuses singular layers."""


Method = Annotated[
    Linear
    | Slerp
    | MultiSlerp
    | Karcher
    | TaskArithmetic
    | Ties
    | DareLinear
    | DareTies
    | DellaLinear
    | Della
    | Breadcrumbs
    | BreadcrumbsTies
    | ModelStock
    | ConsensusTa
    | TsvM
    | IsoC
    | IsoCts
    | Wudi
    | Fisher
    | RegMean,
    Field(discriminator="name"),
]
"""One merge method with its parameters, told by ``name``."""

METHOD_SPECS: Mapping[str, type[MethodSpec]] = MappingProxyType(
    {
        get_args(spec.model_fields["name"].annotation)[0]: spec
        for spec in get_args(get_args(Method)[0])
    }
)
"""Declaration of each merge method by its name."""
