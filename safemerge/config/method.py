"""Merge methods as a recipe declares them: parameters, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from safemerge.config.checkpoint import Name, Quantity
from safemerge.config.coefficient import Coefficient, Layerwise, Share
from safemerge.config.method_spec import (
    BY_EXPERT,
    LAYERWISE,
    MeanSpec,
    MethodSpec,
    Origin,
    TaskVectorSpec,
    Vectors,
)
from safemerge.config.task_vector_method import (
    ArceeFusion,
    Breadcrumbs,
    BreadcrumbsTies,
    ConsensusTa,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    ModelStock,
    NearSwap,
    Ram,
    Sce,
    TaskArithmetic,
    Ties,
)

__all__ = [
    "BY_EXPERT",
    "LAYERWISE",
    "METHOD_SPECS",
    "ArceeFusion",
    "Breadcrumbs",
    "BreadcrumbsTies",
    "ConsensusTa",
    "DareLinear",
    "DareTies",
    "Della",
    "DellaLinear",
    "Fisher",
    "IsoC",
    "IsoCts",
    "Karcher",
    "Linear",
    "Method",
    "MethodSpec",
    "ModelStock",
    "MultiSlerp",
    "NearSwap",
    "NuSlerp",
    "Passthrough",
    "Ram",
    "RegMean",
    "Sce",
    "Slerp",
    "TaskArithmetic",
    "Ties",
    "TsvM",
    "Wudi",
]


class Linear(MeanSpec):
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


class MultiSlerp(MeanSpec):
    """Spherical interpolation of several models: one step in a tangent space."""

    name: Literal["multi_slerp"]
    variant: Literal["tangent", "mergekit"] = "tangent"
    """``tangent``: logarithm and exponential map at the normalised mean, which is slerp for two
    models at equal weights; ``mergekit``: its projection comes to the normalised mean itself."""
    normalize: bool = Field(default=True, exclude_if=lambda on: on)
    """Divide the weights by their sum; false takes them as they are, so that they also scale the
    result (mergekit's ``normalize_weights``)."""
    origin: Origin = Field(default="zero", exclude_if=lambda origin: origin == "zero")
    """What directions are measured from: ``zero``, of whole weights; ``base``, of task vectors,
    whose mean is added to the base (mergekit's with a base model)."""


class NuSlerp(MeanSpec):
    """Spherical interpolation of two models by the ratio of their weights, per tensor or row."""

    name: Literal["nuslerp"]
    weights: dict[str, Coefficient] = Field(min_length=2, max_length=2)
    """Weights of the two models, of which only the ratio counts: the place on the arc is the
    second's share. Half where they sum to zero (below 1e-6)."""
    origin: Origin = "zero"
    """What directions are measured from: ``zero``, of whole weights; ``base``, of task vectors,
    whose interpolation is added to the base."""
    vectors: Vectors = "tensor"
    """What is interpolated as one vector: the whole ``tensor``; ``rows``, each run along the last
    axis (an output's weights); ``columns``, each along the first (an input's)."""


class Passthrough(MethodSpec):
    """One model as it is, usually a stack of layers, with a scale (mergekit's frankenmerges)."""

    takes_base: ClassVar[bool] = True

    name: Literal["passthrough"]
    models: list[Name] = Field(min_length=1, max_length=1)
    """The one model."""
    scale: Coefficient = 1.0
    """Factor of its weights; 0 in a layer's output projections makes the layer do nothing."""


class Karcher(MeanSpec):
    """Weighted Karcher mean of the models' directions, times their mean norm, per tensor."""

    name: Literal["karcher"]
    num_steps: int = Field(default=100, ge=1, le=10_000)
    """Most steps; the mean stops when a step is shorter than `tolerance`."""
    tolerance: float = Field(default=1e-9, gt=0.0, lt=1.0)
    """Angle in radians below which a step ends the iteration."""


class _Matrix(TaskVectorSpec):
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
    | NuSlerp
    | Karcher
    | Passthrough
    | TaskArithmetic
    | Ties
    | DareLinear
    | DareTies
    | DellaLinear
    | Della
    | Breadcrumbs
    | BreadcrumbsTies
    | ModelStock
    | Sce
    | ArceeFusion
    | NearSwap
    | Ram
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
