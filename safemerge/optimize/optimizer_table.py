"""The table of optimisers: what `safemerge optimize` can look for, by what, and whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from safemerge.config.program import MethodRow, MethodTable
from safemerge.optimize.spec import CmaEs, GradientDescent, LmCocktail

_ROWS = (
    MethodRow(
        name="lm_cocktail",
        title="LM-Cocktail",
        summary="One weight a model, from its loss on safety and expert data; no backward pass.",
        spec=LmCocktail,
        uses_base=False,
        citation="Xiao et al., LM-Cocktail, 2023",
        url="https://arxiv.org/abs/2311.13534",
        variant="Safety data are among the examples, as in arXiv:2406.14563.",
    ),
    MethodRow(
        name="gradient",
        title="Gradient of the coefficients",
        summary="A coefficient for each expert and layer, by Adam on the loss on the same data.",
        spec=GradientDescent,
        uses_base=True,
        citation="Hammoud et al., Model Merging and Safety Alignment, 2024",
        url="https://arxiv.org/abs/2406.14563",
        variant="The coefficients are AdaMerging's (arXiv:2310.02575), the objective the paper's; "
        "after each step they are cut to [low, high].",
    ),
    MethodRow(
        name="entropy",
        title="AdaMerging",
        summary="The same coefficients, by the entropy of the first answer token; prompts alone.",
        spec=GradientDescent,
        uses_base=True,
        citation="Yang et al., AdaMerging, ICLR 2024",
        url="https://arxiv.org/abs/2310.02575",
        variant="Declared as 'objective: entropy' with 'optimizer: {name: gradient}'. The paper's "
        "classes are here the next token's vocabulary.",
    ),
    MethodRow(
        name="cma_es",
        title="CMA-ES",
        summary="Coefficients, and the density if asked, by forward passes on the same data.",
        spec=CmaEs,
        uses_base=True,
        citation="Akiba et al., Evolutionary Optimization of Model Merging Recipes, 2024",
        url="https://arxiv.org/abs/2403.13187",
        variant="EvoMM's search in parameter space, with the loss on declared data for its score.",
    ),
)

OPTIMIZERS: Mapping[str, MethodRow] = MappingProxyType({row.name: row for row in _ROWS})
"""Every optimiser by name."""

METHOD_TABLE = MethodTable(
    "optimizer",
    "optimiser (safemerge optimize)",
    "Optimisers of coefficients (safemerge optimize)",
    OPTIMIZERS,
)
"""For `safemerge methods`."""
