"""Merge methods that add a merged task vector to the base, entry by entry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from safemerge.config.checkpoint import Name
from safemerge.config.coefficient import (
    FORM,
    Coefficient,
    Density,
    Layerwise,
    Number,
    leaves,
)
from safemerge.config.method_row import Source, Usual
from safemerge.config.method_spec import DENSITY, LAMBDA, MethodSpec, TaskVectorSpec

Rescale = Literal["probability", "l1", "none"]
Consensus = Literal["mergekit", "peft"]


class _Sparse(TaskVectorSpec):
    density_by_expert: ClassVar[bool] = True

    density: Annotated[
        Annotated[Density, Tag("number")]
        | Annotated[list[Density], Tag("anchors"), Field(min_length=2)]
        | Annotated[dict[str, Layerwise[Density]], Tag("mapping")],
        FORM,
        DENSITY,
    ] = 0.5
    """Fraction of each task vector's entries kept, in (0, 1]: for all experts, or by expert."""


_AtLeastZero = Annotated[float, Field(ge=0.0)]
_Epsilon = Annotated[float, Field(ge=0.0, lt=0.5)]
_Gamma = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Summed(TaskVectorSpec):
    normalize: bool = Field(default=False, exclude_if=lambda on: not on)
    """Divide the weights by their sum, per tensor (mergekit's ``normalize``)."""


class _Trimmed(_Sparse):
    rescale: Literal["none", "l1"] = Field(
        default="none", exclude_if=lambda rescale: rescale == "none"
    )
    """``l1``: what a trim keeps is scaled to the task vector's L1 norm (mergekit's ``rescale``);
    ``none``: it stays as it is, as the papers have it."""


class _Elected(_Sparse):
    variant: Consensus = "mergekit"
    """Sign election and mean: ``mergekit`` weights first and divides by the agreeing weights;
    ``peft`` elects unweighted and divides by the number of agreeing experts."""
    normalize: bool = True
    """Divide by the agreeing weights (or experts); false adds the agreeing entries up."""
    divisor: Literal["magnitude", "signed"] = Field(
        default="magnitude", exclude_if=lambda divisor: divisor == "magnitude"
    )
    """How agreeing weights are added up to divide by them: by ``magnitude``, so that a negative
    weight negates; or ``signed``, as mergekit 0.1.5, where its sign cancels (and a sum of zero
    divides by 1). Equal where no weight is negative."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.divisor == "signed" and (self.variant == "peft" or not self.normalize):
            got = "variant: peft" if self.variant == "peft" else "normalize: false"
            raise ValueError(
                f"divisor: signed is for means that divide by weights; got {got}. Drop it."
            )
        return self


class TaskArithmetic(_Summed):
    """base + lambda * sum of w_i tau_i; negative weights negate (arXiv:2212.04089)."""

    source: ClassVar[Source] = Source(
        "Task arithmetic",
        "Ilharco et al., Editing models with task arithmetic, ICLR 2023",
        "https://arxiv.org/abs/2212.04089",
        "As the paper, with a weight for each expert; peft and mergekit agree.",
    )

    name: Literal["task_arithmetic"]


class Ties(_Elected, _Trimmed):
    """Trim by magnitude, elect a sign, mean over the agreeing (arXiv:2306.01708)."""

    source: ClassVar[Source] = Source(
        "TIES",
        "Yadav et al., TIES-Merging, NeurIPS 2023",
        "https://arxiv.org/abs/2306.01708",
        "As mergekit's ties with normalize: true (trim per tensor, weights before the sign "
        "election, divided by the agreeing weights, absolute values here; divisor: signed for "
        "mergekit's with negative ones); variant: peft elects before weighting and divides by "
        "the count; the paper trims over the whole model and has no weights.",
    )

    name: Literal["ties"]


class DareLinear(_Summed, _Sparse):
    """Drop entries at random, rescale the rest, add up (arXiv:2311.03099)."""

    source: ClassVar[Source] = Source(
        "DARE (linear)",
        "Yu et al., Language Models are Super Mario, ICML 2024",
        "https://arxiv.org/abs/2311.03099",
        "As the paper and peft: kept entries are divided by density; rescale: l1 keeps the L1 "
        "norm, as mergekit. Masks are counter-based, from seed, tensor, expert and index.",
    )

    name: Literal["dare_linear"]
    rescale: Rescale = "probability"
    """``probability``: by 1/density, as the paper and peft; ``l1``: to the task vector's L1
    norm, as mergekit; ``none``."""


class DareTies(_Elected):
    """Drop and rescale as DARE, then elect signs as TIES (arXiv:2311.03099)."""

    source: ClassVar[Source] = Source(
        "DARE-TIES",
        "Yu et al., Language Models are Super Mario, ICML 2024",
        "https://arxiv.org/abs/2311.03099",
        "DARE, then TIES' election and weighted mean, as mergekit's dare_ties with normalize: "
        "true, or peft's with variant: peft; in both the random mask takes the place of TIES' "
        "trim.",
    )

    name: Literal["dare_ties"]
    rescale: Rescale = "probability"
    """As for ``dare_linear``."""


class _Della(_Sparse):
    epsilon: Annotated[Layerwise[_Epsilon], Usual(0.0, 0.5)] = 0.15
    """Keep probabilities run from density - epsilon (smallest magnitude of a row) to
    density + epsilon (largest); both must be in (0, 1]. Density 1 keeps everything."""
    rescale: Rescale = "probability"
    """``probability``: each entry by 1 over its own keep probability, as the paper; ``l1``: to
    the task vector's L1 norm, as mergekit; ``none``."""

    epsilon_by_expert: dict[str, Layerwise[_Epsilon]] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Epsilon by expert, in place of one for all."""

    @model_validator(mode="after")
    def _probabilities(self) -> Self:
        densities = self.density if isinstance(self.density, dict) else {"": self.density}
        own = self.epsilon_by_expert or {}
        for expert, density in densities.items():
            epsilons = [own[expert]] if expert in own else [*own.values()] or [self.epsilon]
            dropping = list(_below_one(density))
            widest = max(value for epsilon in epsilons for value in leaves(epsilon))
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


class DellaLinear(_Summed, _Della):
    """Drop by magnitude rank at random, rescale, add up (arXiv:2406.11617)."""

    source: ClassVar[Source] = Source(
        "DELLA (linear)",
        "Deep et al., DELLA-Merging, 2024",
        "https://arxiv.org/abs/2406.11617",
        "MagPrune per row and a weighted sum, as mergekit's della_linear; kept entries are "
        "divided by their keep probability as in the paper, rescale: l1 as in mergekit.",
    )

    name: Literal["della_linear"]


class Della(_Elected, _Della):
    """Drop by magnitude rank at random, rescale, elect signs, mean (arXiv:2406.11617)."""

    source: ClassVar[Source] = Source(
        "DELLA",
        "Deep et al., DELLA-Merging, 2024",
        "https://arxiv.org/abs/2406.11617",
        "MagPrune per row, then TIES' election and weighted mean, as mergekit's della with "
        "normalize: true; rescaled as della_linear.",
    )

    name: Literal["della"]


class _Breadcrumbs(_Trimmed):
    gamma: Annotated[Layerwise[_Gamma], Usual(0.0, 0.2)] = 0.01
    """Fraction of entries of largest magnitude that is dropped; less where density leaves no
    room for it, so that density always holds."""
    gamma_by_expert: dict[str, Layerwise[_Gamma]] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Gamma by expert, in place of one for all."""


class Breadcrumbs(_Summed, _Breadcrumbs):
    """Drop the largest and the smallest entries, add up (arXiv:2312.06795)."""

    source: ClassVar[Source] = Source(
        "Model Breadcrumbs",
        "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024",
        "https://arxiv.org/abs/2312.06795",
        "Per tensor, as the paper and mergekit's breadcrumbs (in mergekit's numbers: gamma "
        "dropped at the top, density kept); gamma 0 is a plain trim.",
    )

    name: Literal["breadcrumbs"]


class BreadcrumbsTies(_Elected, _Breadcrumbs):
    """Drop the largest and the smallest entries, then elect signs as TIES."""

    source: ClassVar[Source] = Source(
        "Model Breadcrumbs with TIES",
        "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024",
        "https://arxiv.org/abs/2312.06795",
        "Breadcrumbs, then TIES' election and weighted mean, as mergekit's breadcrumbs_ties with "
        "normalize: true.",
    )

    name: Literal["breadcrumbs_ties"]


class ModelStock(MethodSpec):
    """Between base and the experts' mean, at the place the angles tell (arXiv:2403.19522)."""

    source: ClassVar[Source] = Source(
        "Model Stock",
        "Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV 2024",
        "https://arxiv.org/abs/2403.19522",
        "Per tensor, as the paper and mergekit's model_stock; a negative mean cosine gives the "
        "base, where variant: mergekit extrapolates; vectors: rows is its filter_wise.",
    )

    name: Literal["model_stock"]
    models: list[Name] = Field(min_length=1)
    """Experts that are averaged; the paper has two or more."""
    lambda_: Annotated[Coefficient, LAMBDA] = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector; the paper's is 1."""
    variant: Literal["clamped", "mergekit"] = Field(
        default="clamped", exclude_if=lambda variant: variant == "clamped"
    )
    """Where task vectors point apart: ``clamped`` takes a negative mean cosine as 0, which gives
    the base; ``mergekit`` takes the paper's formula as it stands, which extrapolates there (the
    base at its pole), and cosines over norms whose product is at least 1e-6."""
    vectors: Literal["tensor", "rows"] = Field(
        default="tensor", exclude_if=lambda vectors: vectors == "tensor"
    )
    """What has an angle of its own: a whole ``tensor``; or each of its ``rows``, along the last
    axis (mergekit's ``filter_wise``)."""


class Sce(MethodSpec):
    """Select by variance, calculate weights, erase minorities (SCE, arXiv:2408.07990)."""

    source: ClassVar[Source] = Source(
        "SCE",
        "Wan et al., FuseChat: Knowledge Fusion of Chat Models, EMNLP 2025",
        "https://arxiv.org/abs/2408.07990",
        "As the paper, per tensor; variant: mergekit has equal weights where mean squares sum to "
        "less than 1e-6, as mergekit's sce.",
    )

    name: Literal["sce"]
    models: list[Name] = Field(min_length=1)
    """Experts that are merged; their weights are calculated, per tensor."""
    density: Annotated[Layerwise[Density], DENSITY] = 1.0
    """Fraction of entries that are merged, in (0, 1]: of those that differ between experts, the
    ones of largest variance (mergekit's ``select_topk``). 1 merges all."""
    variant: Literal["paper", "mergekit"] = "paper"
    """How weights are calculated, by squared task vectors: ``paper``, always; ``mergekit``, equal
    ones where the mean squares sum to less than 1e-6, as those of usual fine-tuning do."""
    lambda_: Annotated[Coefficient, LAMBDA] = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector; the paper's is 1."""


class ArceeFusion(MethodSpec):
    """Take an expert's entries where they matter most, the base's elsewhere (Arcee Fusion)."""

    source: ClassVar[Source] = Source(
        "Arcee Fusion",
        "Goddard et al., Arcee's MergeKit, EMNLP 2024",
        "https://arxiv.org/abs/2403.13257",
        "As mergekit's arcee_fusion, which has no paper; quartiles are exact, where mergekit "
        "draws a million entries of larger tensors.",
    )

    name: Literal["arcee_fusion"]
    models: list[Name] = Field(min_length=1, max_length=1)
    """The one expert that is fused into the base."""
    lambda_: Annotated[Coefficient, LAMBDA] = Field(default=1.0, alias="lambda")
    """Scale of the fused task vector; mergekit's is 1."""


class NearSwap(MethodSpec):
    """Move the base towards an expert, by at most t in every entry (mergekit's nearswap)."""

    source: ClassVar[Source] = Source(
        "NearSwap",
        "alchemonaut, QuartetAnemoi-70B (model card), 2024",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        "As mergekit's nearswap, which has no paper.",
    )

    name: Literal["nearswap"]
    models: list[Name] = Field(min_length=1, max_length=1)
    """The one expert."""
    t: Annotated[Layerwise[_AtLeastZero], Usual(0.0, 0.01, low_included=False)]
    """Largest change of an entry, in units of the weights: entries that differ by less become the
    expert's. 0 leaves the base."""
    lambda_: Annotated[Coefficient, LAMBDA] = Field(default=1.0, alias="lambda")
    """Scale of the change; mergekit's is 1."""


class Ram(MethodSpec):
    """Keep what one expert changed, average what several did (RAM, arXiv:2601.13572)."""

    source: ClassVar[Source] = Source(
        "Reinforced Agent Merging (RAM)",
        "Reinforced Agent Merging, 2026",
        "https://arxiv.org/abs/2601.13572",
        "As mergekit's ram, and with boost: 0.1 its ramplus_tl: shares of entries are counted per "
        "tensor.",
    )

    name: Literal["ram"]
    models: list[Name] = Field(min_length=1)
    """Experts that are merged."""
    epsilon: Annotated[Layerwise[_AtLeastZero], Usual(0.0, 1e-3)] = 1e-5
    """An expert changed an entry where its task vector exceeds this in magnitude."""
    boost: Annotated[Layerwise[_AtLeastZero], Usual(0.0, 1.0)] = 0.0
    """Entries that one expert alone changed are scaled by 1 + boost * min(rho, boost_cap), where
    rho is how many entries it shares with others for each of its own, per tensor. 0 is RAM;
    mergekit's ``ramplus_tl`` has 0.1 (its ``r``)."""
    boost_cap: Annotated[Layerwise[_AtLeastZero], Usual(0.0, 1.0)] = 0.2
    """Largest rho that counts (mergekit's ``alpha``)."""
    lambda_: Annotated[Coefficient, LAMBDA] = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector; the paper's is 1."""


class ConsensusTa(TaskVectorSpec):
    """Task arithmetic on the entries that several experts need (arXiv:2405.07813)."""

    source: ClassVar[Source] = Source(
        "Consensus task arithmetic (TALL masks)",
        "Wang et al., Localizing Task Information for Improved Model Merging and Compression, "
        "ICML 2024",
        "https://arxiv.org/abs/2405.07813",
        "As the paper, with one mask threshold for all experts and a weight for each.",
    )

    name: Literal["consensus_ta"]
    mask_threshold: Annotated[Layerwise[_AtLeastZero], Usual(0.0, 1.0)] = 0.4
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
