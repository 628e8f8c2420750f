"""Merge methods as a recipe declares them: parameters, ranges and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from safemerge import plugins
from safemerge.config.added import WithAdded
from safemerge.config.checkpoint import Name, Quantity
from safemerge.config.coefficient import Coefficient, Layerwise, Share
from safemerge.config.merge_method import AddedMethod, load_method
from safemerge.config.method_row import MethodRow, Source, Usual, name_of, rows_by_name, summary_of
from safemerge.config.method_spec import (
    BY_EXPERT,
    WEIGHTS,
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
    "METHODS",
    "AnyMethod",
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
    "method_row",
    "method_rows",
]


class Linear(MeanSpec):
    """Weighted mean of weights, a model soup: sum of w_i theta_i (arXiv:2203.05482)."""

    source: ClassVar[Source] = Source(
        "Linear (model soup)",
        "Wortsman et al., Model soups, ICML 2022",
        "https://arxiv.org/abs/2203.05482",
        "As mergekit's linear; weights are normalised unless normalize is false.",
    )

    name: Literal["linear"]
    normalize: bool = True
    """Divide by the sum of the weights, per layer group."""


class Slerp(MethodSpec):
    """Spherical interpolation between two models, per tensor (Shoemake 1985)."""

    takes_base: ClassVar[bool] = True

    source: ClassVar[Source] = Source(
        "SLERP",
        "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        "https://doi.org/10.1145/325165.325242",
        "As mergekit's slerp, per tensor; linear where abs(cos) > 0.9995.",
    )

    name: Literal["slerp"]
    models: list[Name] = Field(min_length=2, max_length=2)
    """The models at t = 0 and t = 1; each is the base or an expert."""
    t: Annotated[Layerwise[Share], Usual(0.0, 1.0)]
    """Position between the two, in [0, 1]."""


class MultiSlerp(MeanSpec):
    """Spherical interpolation of several models: one step in a tangent space."""

    source: ClassVar[Source] = Source(
        "Multi-SLERP",
        "Goddard, Multi-SLERP, in mergekit, 2025",
        "https://github.com/arcee-ai/mergekit",
        "One logarithm and exponential at the normalised mean; variant: mergekit gives "
        "mergekit's multislerp, which is the normalised mean itself; origin: base its form with "
        "a base model.",
    )

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

    source: ClassVar[Source] = Source(
        "NuSLERP",
        "Goddard et al., Arcee's MergeKit, EMNLP 2024",
        "https://arxiv.org/abs/2403.13257",
        "As mergekit's nuslerp: of whole weights, or with origin: base of task vectors; of whole "
        "tensors, or of each row or column (vectors; nuslerp_flatten: false there).",
    )

    name: Literal["nuslerp"]
    weights: Annotated[dict[str, Coefficient], WEIGHTS] = Field(min_length=2, max_length=2)
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

    source: ClassVar[Source] = Source(
        "Passthrough",
        "Goddard et al., Arcee's MergeKit, EMNLP 2024",
        "https://arxiv.org/abs/2403.13257",
        "As mergekit's passthrough: one model, with a scale; layers of several models one above "
        "the other are a model given by stack.",
    )

    name: Literal["passthrough"]
    models: list[Name] = Field(min_length=1, max_length=1)
    """The one model."""
    scale: Annotated[Coefficient, Usual(0.0, 1.0)] = 1.0
    """Factor of its weights; 0 in a layer's output projections makes the layer do nothing."""


class Karcher(MeanSpec):
    """Weighted Karcher mean of the models' directions, times their mean norm, per tensor."""

    source: ClassVar[Source] = Source(
        "Karcher mean",
        "Karcher, Riemannian center of mass and mollifier smoothing, CPAM 1977",
        "https://doi.org/10.1002/cpa.3160300502",
        "Of directions per tensor, times the weighted mean norm, as mergekit's karcher, with "
        "weights; linear where directions cancel.",
    )

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

    source: ClassVar[Source] = Source(
        "TSV-M",
        "Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model Merging, "
        "CVPR 2025",
        "https://arxiv.org/abs/2412.00081",
        "As the paper, with a weight for each expert; vectors, embeddings and output head are "
        "averaged.",
    )

    name: Literal["tsv_m"]


class IsoC(_Matrix):
    """Sum of task vectors with all singular values equal, per matrix (arXiv:2502.04959)."""

    source: ClassVar[Source] = Source(
        "Iso-C",
        "Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025",
        "https://arxiv.org/abs/2502.04959",
        "As the paper, with a weight for each expert; vectors, embeddings and output head are "
        "averaged; directions beyond the numerical rank are left out.",
    )

    name: Literal["iso_c"]


class IsoCts(_Matrix):
    """Iso-C in common and task-specific directions, per matrix (arXiv:2502.04959)."""

    source: ClassVar[Source] = Source(
        "Iso-CTS",
        "Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025",
        "https://arxiv.org/abs/2502.04959",
        "As iso_c; counts of directions as in the authors' code.",
    )

    name: Literal["iso_cts"]
    common_share: Annotated[Share, Usual(0.0, 1.0)] = 0.8
    """Share of a matrix's rank given to the common directions."""


class Wudi(_Matrix):
    """Least interference with every task vector, per linear layer (arXiv:2503.08099)."""

    source: ClassVar[Source] = Source(
        "WUDI-Merging",
        "Cheng et al., Whoever Started the Interference Should End It, ICML 2025",
        "https://arxiv.org/abs/2503.08099",
        "As the paper (Adam from the sum, 300 steps, 1e-5), with a weight for each expert; "
        "vectors, embeddings and output head are averaged; solver: exact jumps to the minimum.",
    )

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

    weights: Annotated[dict[str, Layerwise[Positive]], Usual(0.0, 1.0, low_included=False)] = (
        Field(min_length=1)
    )
    """Weight by model name, at least 0, ``base`` model included by its own name; only ratios
    count. The papers' is 1 for each. Every model named needs statistics."""


class Fisher(_Measured):
    """Mean weighted, entry by entry, by diagonal Fisher information (arXiv:2111.09832)."""

    statistic: ClassVar[Quantity | None] = "fisher"

    source: ClassVar[Source] = Source(
        "Fisher merging",
        "Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022",
        "https://arxiv.org/abs/2111.09832",
        "As the authors' code: Fishers normalised, floor 1e-6 on all (target: on one, its "
        "favor_target_model). Of language models: the gradient is of a whole answer's "
        "log-probability, answers are the data's or (fisher: sampled) drawn token by token; "
        "floor_unit: mean for a floor that suits any size.",
    )

    name: Literal["fisher"]
    normalize: bool = True
    """Divide each model's weight by the Euclidean norm of its whole Fisher diagonal, so that a
    model with larger gradients everywhere does not count for more."""
    floor: Annotated[float, Field(ge=0.0), Usual(0.0, 1e-3)] = 1e-6
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

    source: ClassVar[Source] = Source(
        "RegMean",
        "Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR 2023",
        "https://arxiv.org/abs/2212.09849",
        "As the paper, with a weight for each model; Gram matrices are means over real tokens "
        "(the authors' over padding too), in float64; tensors of other layers, embeddings and "
        "output head are averaged; ridge is an addition.",
    )

    name: Literal["regmean"]
    off_diagonal: Annotated[Layerwise[Share], Usual(0.1, 1.0)] = 0.9
    """Factor of the Gram matrices' off-diagonal entries, in [0, 1]; usually 0.1 to 1. At 1 the
    fit is exact and may be singular; at 0 each input counts by itself."""
    ridge: Annotated[float, Field(ge=0.0)] = 0.0
    """Added to every Gram matrix's diagonal, times its mean diagonal entry: inputs that no
    model's data reached get the mean weights. 0 refuses singular layers."""


_BuiltIn = (
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
    | RegMean
)

METHODS = rows_by_name(
    MethodRow("method", name_of(spec), spec, spec.source, summary_of(spec), not spec.takes_base)
    for spec in get_args(_BuiltIn)
)
"""safemerge's own merge methods by name."""


def method_row(name: str) -> MethodRow:
    """Return the row of a merge method, safemerge's own or of another package.

    Raises:
        ConfigError: If there is none, or its package cannot be imported.
    """
    return METHODS[name] if name in METHODS else load_method(name, builtin=METHODS).row


def method_rows() -> Mapping[str, MethodRow]:
    """Return the rows of all merge methods, those of installed packages last.

    Raises:
        ConfigError: If a package cannot be imported, or names clash.
    """
    added = plugins.installed(plugins.MERGE_METHODS, builtin=METHODS)
    return {**METHODS, **{name: method_row(name) for name in sorted(added)}}


Method = Annotated[
    _BuiltIn,
    Field(discriminator="name"),
    WithAdded(plugins.MERGE_METHODS, METHODS, lambda name: method_row(name).spec),
]
"""One merge method with its parameters, chosen by ``name``."""

AnyMethod = _BuiltIn | AddedMethod
"""What a file's method is once it is read: also of another package."""
