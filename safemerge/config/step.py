"""Safety operators as a recipe declares them: steps on experts before, or on the merge after."""

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
    layerwise_fields,
)
from safemerge.config.method_row import MethodRow, Source, name_of, rows_by_name, summary_of


class StepSpec(StrictModel):
    """What every step shares: what it changes, and which models it reads."""

    source: ClassVar[Source]
    """Whose operator it is."""
    idle: ClassVar[Mapping[str, float]] = MappingProxyType({})
    """Coefficients at which the step changes nothing."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Fields that name models."""
    statistic: ClassVar[Quantity | None] = None
    """What must have been measured of every expert that the method merges."""

    on: Literal["experts", "merged"]
    """``experts``: each expert's weights, before the method; ``merged``: the method's result."""
    experts: list[Name] | None = Field(default=None, min_length=1)
    """With ``on: experts``, the experts that are changed; null for all that the method merges,
    save those the step itself reads."""

    @model_validator(mode="after")
    def _experts_only_there(self) -> Self:
        if self.experts is not None and self.on == "merged":
            raise ValueError("experts may be named with 'on: experts' only. Drop one of the two.")
        return self

    def models_of_fields(self, base: str) -> tuple[str, ...]:
        """Name of the model of each field in `reads`, the base's where none is named."""
        return tuple(getattr(self, field) or base for field in self.reads)

    def models_read(self, base: str) -> frozenset[str]:
        """Names of the models whose weights the step reads."""
        return frozenset(self.models_of_fields(base))

    def changes(self, expert: str, base: str) -> bool:
        """Tell whether the step changes an expert before the method."""
        if self.on == "merged":
            return False
        if self.experts is not None:
            return expert in self.experts
        return expert not in self.models_read(base)

    def coefficients(self) -> Iterator[tuple[str, Number]]:
        """Yield (field, coefficient) for every layer-wise coefficient."""
        layerwise = layerwise_fields(type(self))
        for field in type(self).model_fields:
            if field in layerwise:
                yield field, getattr(self, field)


class Resta(StepSpec):
    """Add a safety vector: theta + scale (aligned - unaligned) (arXiv:2402.11746)."""

    reads: ClassVar[tuple[str, ...]] = ("aligned", "unaligned")

    source: ClassVar[Source] = Source(
        "RESTA",
        "Bhardwaj et al., Language Models are Homer Simpson!, ACL 2024",
        "https://arxiv.org/abs/2402.11746",
        "The addition alone; the paper drops and rescales the tuned update with DARE first, "
        "which the method dare_linear does.",
    )
    idle: ClassVar[Mapping[str, float]] = {"scale": 0.0}

    name: Literal["resta"]
    on: Literal["experts", "merged"] = "merged"
    """``experts``: each expert's weights, before the method; ``merged``: its result, after."""
    aligned: Name
    """The safe model."""
    unaligned: Name
    """The same model made unsafe: the aligned one after tuning on harmful data."""
    scale: Coefficient = 1.0
    """The paper's gamma; 0 changes nothing."""


class Lox(StepSpec):
    """Extrapolate alignment in its leading directions, theta + alpha U U^T V (2506.15606)."""

    reads: ClassVar[tuple[str, ...]] = ("aligned", "unaligned")

    source: ClassVar[Source] = Source(
        "LoX",
        "Perin et al., LoX: Low-Rank Extrapolation Robustifies LLM Safety Against Fine-tuning, "
        "COLM 2025",
        "https://arxiv.org/abs/2506.15606",
        "Added to any merge or expert, where the paper's is on the aligned model itself; matrices "
        "alone, no embeddings.",
    )
    idle: ClassVar[Mapping[str, float]] = {"alpha": 0.0}

    name: Literal["lox"]
    on: Literal["experts", "merged"] = "merged"
    """``experts``: each expert's weights, before the method; ``merged``: its result, after. With
    the aligned model alone in the method, ``merged`` is the paper's; among `experts` it is changed
    only if it is named there."""
    aligned: Name
    """The aligned model."""
    unaligned: Name | None = None
    """What it was before alignment; null for the recipe's base."""
    rank: Annotated[int, Field(ge=1)] = 6
    """Leading singular directions that are extrapolated, the paper's k; at or above a matrix's
    rank all of its alignment is, as RESTA does. A start to search from, as `alpha` is."""
    alpha: Coefficient = 1.0
    """How far beyond the alignment, in its own lengths; 0 changes nothing. Large values cost
    skill."""


class _Projected(StepSpec):
    reads: ClassVar[tuple[str, ...]] = ("aligned", "unaligned")

    on: Literal["experts", "merged"] = "experts"
    """``experts``: each expert's weights, before the method; ``merged``: its result, after."""
    aligned: Name
    """The safe model."""
    unaligned: Name | None = None
    """What it was before alignment; null for the recipe's base."""


class SafeLora(_Projected):
    """Project unsafe updates of matrices onto the alignment's columns (arXiv:2405.16833)."""

    source: ClassVar[Source] = Source(
        "Safe LoRA",
        "Hsu et al., Safe LoRA, NeurIPS 2024",
        "https://arxiv.org/abs/2405.16833",
        "By threshold, for matrices of full weights; the paper's choice of the k lowest layers "
        "is not offered, for it needs all layers at once.",
    )
    idle: ClassVar[Mapping[str, float]] = {"threshold": -1.0}

    name: Literal["safe_lora"]
    threshold: Layerwise[Annotated[float, Field(ge=-1.0, le=1.0)]] = 0.5
    """Cosine between an update and its projection, at or below which it is projected."""


class SafeMerge(_Projected):
    """Mix unsafe updates with the safe model's, tensor by tensor (arXiv:2503.17239)."""

    reads: ClassVar[tuple[str, ...]] = ("aligned", "unaligned", "safe")

    source: ClassVar[Source] = Source(
        "SafeMERGE",
        "Djuhera et al., SafeMERGE, 2025",
        "https://arxiv.org/abs/2503.17239",
        "Generalised from LoRA to all tensors of full weights; vectors count as one column.",
    )
    idle: ClassVar[Mapping[str, float]] = {"alpha": 0.0}

    name: Literal["safe_merge"]
    safe: Name
    """Model whose update from the base is mixed in: tuned on safety data, or the aligned one."""
    threshold: Layerwise[Annotated[float, Field(ge=-1.0, le=1.0)]] = 0.35
    """Cosine between an update and its projection, below which it is mixed."""
    alpha: Layerwise[Share] = 0.2
    """Share of the safe model's update where it is mixed in."""


class MergeAlign(StepSpec):
    """base + alpha tau + (1 - alpha) tau_aligned (arXiv:2411.06824)."""

    reads: ClassVar[tuple[str, ...]] = ("aligned",)

    source: ClassVar[Source] = Source(
        "MergeAlign",
        "Thakkar et al., Combining Domain and Alignment Vectors, 2024",
        "https://arxiv.org/abs/2411.06824",
        "As the paper; on the merge by default, so that it composes with any method.",
    )
    idle: ClassVar[Mapping[str, float]] = {"alpha": 1.0}

    name: Literal["merge_align"]
    on: Literal["experts", "merged"] = "merged"
    """``experts``: each expert's weights, before the method; ``merged``: its result, after."""
    aligned: Name
    """The aligned model."""
    alpha: Layerwise[Share] = 0.5
    """Share of the merge (or of the expert); 1 changes nothing."""


class PrePost(StepSpec):
    """(1 - alpha) theta_before + alpha theta_after: undo part of a tuning (arXiv:2412.19512)."""

    reads: ClassVar[tuple[str, ...]] = ("before",)

    source: ClassVar[Source] = Source(
        "Pre- and post-tuning merge",
        "Farn et al., Safeguard Fine-Tuned LLMs Through Pre- and Post-Tuning Model Merging, 2024",
        "https://arxiv.org/abs/2412.19512",
        "The paper's linear form.",
    )
    idle: ClassVar[Mapping[str, float]] = {"alpha": 1.0}

    name: Literal["pre_post"]
    on: Literal["experts", "merged"] = "experts"
    """``experts``: each expert's weights, before the method; ``merged``: its result, after."""
    before: Name | None = None
    """The model before tuning; null for the recipe's base."""
    alpha: Layerwise[Share] = 0.5
    """Share of the tuned model, the paper's lambda; 1 changes nothing."""


class Led(StepSpec):
    """Keep of each expert what is important to it and the base, and to it alone (2502.16770)."""

    statistic: ClassVar[Quantity | None] = "importance"

    source: ClassVar[Source] = Source(
        "LED",
        "Ma et al., LED-Merging, ACL 2025",
        "https://arxiv.org/abs/2502.16770",
        "Location, election and disjointing on the experts, so that any method merges them "
        "(task_arithmetic gives the paper's); per tensor, as the authors' code; entries without "
        "gradient are never important.",
    )

    name: Literal["led"]
    on: Literal["experts"] = "experts"
    """``experts``: each expert's weights, before the method; the only place it has."""
    density: Annotated[
        Annotated[Density, Tag("number")]
        | Annotated[list[Density], Tag("anchors"), Field(min_length=2)]
        | Annotated[dict[str, Layerwise[Density]], Tag("mapping")],
        FORM,
    ] = 0.3
    """Fraction of a tensor's entries that counts as important, in (0, 1]: for all experts, or by
    expert. The paper takes 0.1 for safety, 0.4 and 0.5 for skills."""

    def coefficients(self) -> Iterator[tuple[str, Number]]:
        """Yield (field, coefficient) for every layer-wise coefficient."""
        if isinstance(self.density, dict):
            yield from ((f"density.{name}", item) for name, item in self.density.items())
        else:
            yield "density", self.density


Step = Annotated[
    Resta | Lox | SafeLora | SafeMerge | MergeAlign | PrePost | Led, Field(discriminator="name")
]
"""One safety operator with its parameters, chosen by ``name``."""

STEPS = rows_by_name(
    MethodRow("step", name_of(spec), spec, spec.source, summary_of(spec), uses_base=True)
    for spec in get_args(get_args(Step)[0])
)
"""Every safety operator by name."""
