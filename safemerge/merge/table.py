"""The table of merge methods: a method is a row of data over a few shared functions."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from torch import Tensor

from safemerge.errors import MergeError
from safemerge.merge.fisher import merge_fisher
from safemerge.merge.fusion import merge_fusion, merge_nearswap
from safemerge.merge.inputs import TensorInputs
from safemerge.merge.interference import merge_wudi
from safemerge.merge.kernel import (
    merge_linear,
    merge_model_stock,
    merge_nuslerp,
    merge_on_sphere,
    merge_passthrough,
    merge_slerp,
    merge_task_vectors,
)
from safemerge.merge.matrix import merge_iso_c, merge_iso_cts, merge_tsv
from safemerge.merge.ram import merge_ram
from safemerge.merge.regmean import merge_regmean
from safemerge.merge.sce import merge_sce


class ParameterRange(NamedTuple):
    """A method's parameter: its name in YAML and the values that make sense."""

    name: str
    low: float
    high: float
    low_included: bool = True
    per_expert: bool = False


class MethodRow(NamedTuple):
    """One merge method."""

    name: str
    """Machine name, the recipe's discriminator."""
    title: str
    """Name for people."""
    function: Callable[[TensorInputs], Tensor]
    """Pure: tensors and coefficients to the merged tensor."""
    parameters: tuple[ParameterRange, ...]
    """Usual ranges, for search spaces; outside them weights and lambda are still defined."""
    uses_base: bool
    """Whether task vectors from the base enter, rather than whole weights."""
    citation: str
    url: str
    variant: str
    """Which library's variant it equals, and how it departs from the paper."""

    @property
    def is_element_wise(self) -> bool:
        """Whether an entry of the result depends on a few numbers and on that entry alone."""
        function = getattr(self.function, "func", self.function)
        return function in (merge_linear, merge_task_vectors)


_SHARES = ParameterRange("weights", 0.0, 1.0, low_included=False, per_expert=True)
_WEIGHTS = ParameterRange("weights", -2.0, 2.0, per_expert=True)
_LAMBDA = ParameterRange("lambda", 0.0, 2.0)
_DENSITY = ParameterRange("density", 0.0, 1.0, low_included=False, per_expert=True)
_EPSILON = ParameterRange("epsilon", 0.0, 0.5)
_GAMMA = ParameterRange("gamma", 0.0, 0.2)
_DARE = "Yu et al., Language Models are Super Mario, ICML 2024"
_DARE_URL = "https://arxiv.org/abs/2311.03099"
_DELLA = "Deep et al., DELLA-Merging, 2024"
_DELLA_URL = "https://arxiv.org/abs/2406.11617"
_BREADCRUMBS = "Davari and Belilovsky, Model Breadcrumbs, ECCV 2024"
_BREADCRUMBS_URL = "https://arxiv.org/abs/2312.06795"
_ISO = "Marczak et al., No Task Left Behind: Isotropic Model Merging, ICML 2025"
_ISO_URL = "https://arxiv.org/abs/2502.04959"

_ROWS = (
    MethodRow(
        name="linear",
        title="Linear (model soup)",
        function=merge_linear,
        parameters=(_WEIGHTS,),
        uses_base=False,
        citation="Wortsman et al., Model soups, ICML 2022",
        url="https://arxiv.org/abs/2203.05482",
        variant="As mergekit's linear; weights are normalised unless normalize is false.",
    ),
    MethodRow(
        name="slerp",
        title="SLERP",
        function=merge_slerp,
        parameters=(ParameterRange("t", 0.0, 1.0),),
        uses_base=False,
        citation="Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
        url="https://doi.org/10.1145/325165.325242",
        variant="As mergekit's slerp, per tensor; linear where abs(cos) > 0.9995.",
    ),
    MethodRow(
        name="multi_slerp",
        title="Multi-SLERP",
        function=partial(merge_on_sphere, mean="multi_slerp"),
        parameters=(_WEIGHTS,),
        uses_base=False,
        citation="Goddard, Multi-SLERP, in mergekit, 2025",
        url="https://github.com/arcee-ai/mergekit",
        variant="One logarithm and exponential at the normalised mean; variant: mergekit gives "
        "mergekit's multislerp, which is the normalised mean itself; origin: base its form with a "
        "base model.",
    ),
    MethodRow(
        name="nuslerp",
        title="NuSLERP",
        function=merge_nuslerp,
        parameters=(_WEIGHTS,),
        uses_base=False,
        citation="Goddard et al., Arcee's MergeKit, EMNLP 2024",
        url="https://arxiv.org/abs/2403.13257",
        variant="As mergekit's nuslerp: of whole weights, or with origin: base of task vectors; "
        "of whole tensors, or of each row or column (vectors; nuslerp_flatten: false there).",
    ),
    MethodRow(
        name="karcher",
        title="Karcher mean",
        function=partial(merge_on_sphere, mean="karcher"),
        parameters=(_WEIGHTS,),
        uses_base=False,
        citation="Karcher, Riemannian center of mass and mollifier smoothing, CPAM 1977",
        url="https://doi.org/10.1002/cpa.3160300502",
        variant="Of directions per tensor, times the weighted mean norm, as mergekit's karcher, "
        "with weights; linear where directions cancel.",
    ),
    MethodRow(
        name="passthrough",
        title="Passthrough",
        function=merge_passthrough,
        parameters=(ParameterRange("scale", 0.0, 1.0),),
        uses_base=False,
        citation="Goddard et al., Arcee's MergeKit, EMNLP 2024",
        url="https://arxiv.org/abs/2403.13257",
        variant="As mergekit's passthrough: one model, with a scale; layers of several models one "
        "above the other are a model given by stack.",
    ),
    MethodRow(
        name="task_arithmetic",
        title="Task arithmetic",
        function=partial(merge_task_vectors, sparsify="none", consensus="sum"),
        parameters=(_WEIGHTS, _LAMBDA),
        uses_base=True,
        citation="Ilharco et al., Editing models with task arithmetic, ICLR 2023",
        url="https://arxiv.org/abs/2212.04089",
        variant="As the paper, with a weight for each expert; peft and mergekit agree.",
    ),
    MethodRow(
        name="ties",
        title="TIES",
        function=partial(merge_task_vectors, sparsify="magnitude", consensus="disjoint_mean"),
        parameters=(_WEIGHTS, _DENSITY, _LAMBDA),
        uses_base=True,
        citation="Yadav et al., TIES-Merging, NeurIPS 2023",
        url="https://arxiv.org/abs/2306.01708",
        variant=(
            "As mergekit's ties with normalize: true (trim per tensor, weights before the sign "
            "election, divided by the agreeing weights, absolute values here; divisor: signed "
            "for mergekit's with negative ones); variant: peft "
            "elects before weighting and divides by the count; the paper trims over the whole "
            "model and has no weights."
        ),
    ),
    MethodRow(
        name="dare_linear",
        title="DARE (linear)",
        function=partial(merge_task_vectors, sparsify="random", consensus="sum"),
        parameters=(_WEIGHTS, _DENSITY, _LAMBDA),
        uses_base=True,
        citation=_DARE,
        url=_DARE_URL,
        variant="As the paper and peft: kept entries are divided by density; rescale: l1 keeps "
        "the L1 norm, as mergekit. Masks are counter-based, from seed, tensor, expert and index.",
    ),
    MethodRow(
        name="dare_ties",
        title="DARE-TIES",
        function=partial(merge_task_vectors, sparsify="random", consensus="disjoint_mean"),
        parameters=(_WEIGHTS, _DENSITY, _LAMBDA),
        uses_base=True,
        citation=_DARE,
        url=_DARE_URL,
        variant="DARE, then TIES' election and weighted mean, as mergekit's dare_ties with "
        "normalize: true, or peft's with variant: peft; in both the random mask takes the place "
        "of TIES' trim.",
    ),
    MethodRow(
        name="della_linear",
        title="DELLA (linear)",
        function=partial(merge_task_vectors, sparsify="rank", consensus="sum"),
        parameters=(_WEIGHTS, _DENSITY, _EPSILON, _LAMBDA),
        uses_base=True,
        citation=_DELLA,
        url=_DELLA_URL,
        variant="MagPrune per row and a weighted sum, as mergekit's della_linear; kept entries "
        "are divided by their keep probability as in the paper, rescale: l1 as in mergekit.",
    ),
    MethodRow(
        name="della",
        title="DELLA",
        function=partial(merge_task_vectors, sparsify="rank", consensus="disjoint_mean"),
        parameters=(_WEIGHTS, _DENSITY, _EPSILON, _LAMBDA),
        uses_base=True,
        citation=_DELLA,
        url=_DELLA_URL,
        variant="MagPrune per row, then TIES' election and weighted mean, as mergekit's della "
        "with normalize: true; rescaled as della_linear.",
    ),
    MethodRow(
        name="breadcrumbs",
        title="Model Breadcrumbs",
        function=partial(merge_task_vectors, sparsify="outliers", consensus="sum"),
        parameters=(_WEIGHTS, _DENSITY, _GAMMA, _LAMBDA),
        uses_base=True,
        citation=_BREADCRUMBS,
        url=_BREADCRUMBS_URL,
        variant="Per tensor, as the paper and mergekit's breadcrumbs (in mergekit's numbers: "
        "gamma dropped at the top, density kept); gamma 0 is a plain trim.",
    ),
    MethodRow(
        name="breadcrumbs_ties",
        title="Model Breadcrumbs with TIES",
        function=partial(merge_task_vectors, sparsify="outliers", consensus="disjoint_mean"),
        parameters=(_WEIGHTS, _DENSITY, _GAMMA, _LAMBDA),
        uses_base=True,
        citation=_BREADCRUMBS,
        url=_BREADCRUMBS_URL,
        variant="Breadcrumbs, then TIES' election and weighted mean, as mergekit's "
        "breadcrumbs_ties with normalize: true.",
    ),
    MethodRow(
        name="model_stock",
        title="Model Stock",
        function=merge_model_stock,
        parameters=(_LAMBDA,),
        uses_base=True,
        citation="Jang et al., Model Stock: All we need is just a few fine-tuned models, ECCV "
        "2024",
        url="https://arxiv.org/abs/2403.19522",
        variant="Per tensor, as the paper and mergekit's model_stock; a negative mean cosine "
        "gives the base, where variant: mergekit extrapolates; vectors: rows is its filter_wise.",
    ),
    MethodRow(
        name="sce",
        title="SCE",
        function=merge_sce,
        parameters=(_DENSITY._replace(per_expert=False), _LAMBDA),
        uses_base=True,
        citation="Wan et al., FuseChat: Knowledge Fusion of Chat Models, EMNLP 2025",
        url="https://arxiv.org/abs/2408.07990",
        variant="As the paper, per tensor; variant: mergekit has equal weights where mean squares "
        "sum to less than 1e-6, as mergekit's sce.",
    ),
    MethodRow(
        name="arcee_fusion",
        title="Arcee Fusion",
        function=merge_fusion,
        parameters=(_LAMBDA,),
        uses_base=True,
        citation="Goddard et al., Arcee's MergeKit, EMNLP 2024",
        url="https://arxiv.org/abs/2403.13257",
        variant="As mergekit's arcee_fusion, which has no paper; quartiles are exact, where "
        "mergekit draws a million entries of larger tensors.",
    ),
    MethodRow(
        name="nearswap",
        title="NearSwap",
        function=merge_nearswap,
        parameters=(ParameterRange("t", 0.0, 0.01, low_included=False), _LAMBDA),
        uses_base=True,
        citation="alchemonaut, QuartetAnemoi-70B (model card), 2024",
        url="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        variant="As mergekit's nearswap, which has no paper.",
    ),
    MethodRow(
        name="ram",
        title="Reinforced Agent Merging (RAM)",
        function=merge_ram,
        parameters=(
            ParameterRange("epsilon", 0.0, 1e-3),
            ParameterRange("boost", 0.0, 1.0),
            ParameterRange("boost_cap", 0.0, 1.0),
            _LAMBDA,
        ),
        uses_base=True,
        citation="Reinforced Agent Merging, 2026",
        url="https://arxiv.org/abs/2601.13572",
        variant="As mergekit's ram, and with boost: 0.1 its ramplus_tl: shares of entries are "
        "counted per tensor.",
    ),
    MethodRow(
        name="consensus_ta",
        title="Consensus task arithmetic (TALL masks)",
        function=partial(merge_task_vectors, sparsify="none", consensus="agreement"),
        parameters=(_WEIGHTS, ParameterRange("mask_threshold", 0.0, 1.0), _LAMBDA),
        uses_base=True,
        citation="Wang et al., Localizing Task Information for Improved Model Merging and "
        "Compression, ICML 2024",
        url="https://arxiv.org/abs/2405.07813",
        variant="As the paper, with one mask threshold for all experts and a weight for each.",
    ),
    MethodRow(
        name="tsv_m",
        title="TSV-M",
        function=merge_tsv,
        parameters=(_WEIGHTS, _LAMBDA),
        uses_base=True,
        citation="Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model "
        "Merging, CVPR 2025",
        url="https://arxiv.org/abs/2412.00081",
        variant="As the paper, with a weight for each expert; vectors, embeddings and output "
        "head are averaged.",
    ),
    MethodRow(
        name="iso_c",
        title="Iso-C",
        function=merge_iso_c,
        parameters=(_WEIGHTS, _LAMBDA),
        uses_base=True,
        citation=_ISO,
        url=_ISO_URL,
        variant="As the paper, with a weight for each expert; vectors, embeddings and output "
        "head are averaged; directions beyond the numerical rank are left out.",
    ),
    MethodRow(
        name="iso_cts",
        title="Iso-CTS",
        function=merge_iso_cts,
        parameters=(_WEIGHTS, ParameterRange("common_share", 0.0, 1.0), _LAMBDA),
        uses_base=True,
        citation=_ISO,
        url=_ISO_URL,
        variant="As iso_c; counts of directions as in the authors' code.",
    ),
    MethodRow(
        name="wudi",
        title="WUDI-Merging",
        function=merge_wudi,
        parameters=(_WEIGHTS, _LAMBDA),
        uses_base=True,
        citation="Cheng et al., Whoever Started the Interference Should End It, ICML 2025",
        url="https://arxiv.org/abs/2503.08099",
        variant="As the paper (Adam from the sum, 300 steps, 1e-5), with a weight for each "
        "expert; vectors, embeddings and output head are averaged; solver: exact jumps to the "
        "minimum.",
    ),
    MethodRow(
        name="fisher",
        title="Fisher merging",
        function=merge_fisher,
        parameters=(_SHARES, ParameterRange("floor", 0.0, 1e-3)),
        uses_base=False,
        citation="Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022",
        url="https://arxiv.org/abs/2111.09832",
        variant="As the authors' code: Fishers normalised, floor 1e-6 on all (target: on one, its "
        "favor_target_model). Of language models: the gradient is of a whole answer's "
        "log-probability, answers are the data's or (fisher: sampled) drawn token by token; "
        "floor_unit: mean for a floor that suits any size.",
    ),
    MethodRow(
        name="regmean",
        title="RegMean",
        function=merge_regmean,
        parameters=(_SHARES, ParameterRange("off_diagonal", 0.1, 1.0)),
        uses_base=False,
        citation="Jin et al., Dataless Knowledge Fusion by Merging Weights of Language Models, "
        "ICLR 2023",
        url="https://arxiv.org/abs/2212.09849",
        variant="As the paper, with a weight for each model; Gram matrices are means over real "
        "tokens (the authors' over padding too), in float64; tensors of other layers, embeddings "
        "and output head are averaged; ridge is an addition.",
    ),
)

METHODS: Mapping[str, MethodRow] = MappingProxyType({row.name: row for row in _ROWS})
"""Every merge method by machine name."""


def method_row(name: str) -> MethodRow:
    """Return a method's row.

    Raises:
        MergeError: If there is no such method.
    """
    if name not in METHODS:
        raise MergeError(
            f"method '{name}': must be a known merge method; got none of that name. "
            f"Known: {', '.join(METHODS)}."
        )
    return METHODS[name]
