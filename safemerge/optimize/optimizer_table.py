"""The table of optimisers: what `safemerge optimize` can look for, by what, and whose it is."""

from __future__ import annotations

from safemerge.config.method_row import MethodRow, Source, rows_by_name
from safemerge.config.program import MethodTable
from safemerge.optimize.spec import CmaEs, GradientDescent, LmCocktail

_ROWS = (
    MethodRow(
        kind="optimizer",
        name="lm_cocktail",
        spec=LmCocktail,
        source=Source(
            title="LM-Cocktail",
            citation="Xiao et al., LM-Cocktail, 2023",
            url="https://arxiv.org/abs/2311.13534",
            variant="Safety data are among the examples, as in arXiv:2406.14563.",
        ),
        summary="One weight a model, from its loss on safety and expert data; no backward pass.",
        uses_base=False,
    ),
    MethodRow(
        kind="optimizer",
        name="gradient",
        spec=GradientDescent,
        source=Source(
            title="Gradient of the coefficients",
            citation="Hammoud et al., Model Merging and Safety Alignment, 2024",
            url="https://arxiv.org/abs/2406.14563",
            variant="The coefficients are AdaMerging's (arXiv:2310.02575), the objective the "
            "paper's; after each step they are cut to [low, high].",
        ),
        summary="A coefficient for each expert and layer, by Adam on the loss on the same data.",
        uses_base=True,
    ),
    MethodRow(
        kind="optimizer",
        name="entropy",
        spec=GradientDescent,
        source=Source(
            title="AdaMerging",
            citation="Yang et al., AdaMerging, ICLR 2024",
            url="https://arxiv.org/abs/2310.02575",
            variant="Declared as 'objective: entropy' with 'optimizer: {name: gradient}'. The "
            "paper's classes are here the next token's vocabulary.",
        ),
        summary="The same coefficients, by the entropy of the first answer token; prompts alone.",
        uses_base=True,
    ),
    MethodRow(
        kind="optimizer",
        name="cma_es",
        spec=CmaEs,
        source=Source(
            title="CMA-ES",
            citation="Akiba et al., Evolutionary Optimization of Model Merging Recipes, 2024",
            url="https://arxiv.org/abs/2403.13187",
            variant="EvoMM's search in parameter space, with the loss on declared data for its "
            "score.",
        ),
        summary="Coefficients, and the density if asked, by forward passes on the same data.",
        uses_base=True,
    ),
)

OPTIMIZERS = rows_by_name(_ROWS)
"""Every optimiser by name."""

METHOD_TABLE = MethodTable(
    "optimizer",
    "optimiser (safemerge optimize)",
    "Optimisers of coefficients (safemerge optimize)",
    OPTIMIZERS,
)
"""For `safemerge methods`."""
