"""The declared optimiser of a merge's coefficients, and what it is measured against."""

from __future__ import annotations

from safemerge.config.recipe import MergeRecipe
from safemerge.optimize.cocktail import CocktailSearch
from safemerge.optimize.coefficient_gradient import GradientSearch
from safemerge.optimize.coefficient_table import CoefficientTable
from safemerge.optimize.evolution import EvolutionSearch
from safemerge.optimize.merged_model import MergedModel
from safemerge.optimize.optimizer import (
    CoefficientSearch,
    Score,
    Team,
    mean_recipe,
    parent_recipes,
)
from safemerge.optimize.pairs import Pairs
from safemerge.optimize.spec import GradientDescent, LmCocktail, OptimizeSpec

MEAN, RESULT = "(mean)", "(optimised)"
"""Names of the merges in a table of losses; in brackets, so that no model has them."""


def make_search(
    spec: OptimizeSpec,
    table: CoefficientTable,
    merged: MergedModel,
    pairs: Pairs,
    *,
    score: Score,
    team: Team,
) -> CoefficientSearch:
    """Return the declared optimiser, before its first step.

    Args:
        spec: The declared optimisation.
        table: Which coefficients there are.
        merged: The model, for the gradient.
        pairs: Both sets, for the gradient.
        score: Losses of recipes, for the others.
        team: The workers.
    """
    if isinstance(spec.optimizer, GradientDescent):
        return GradientSearch(spec, table, merged, pairs, team)
    return make_scored_search(spec, table, score=score)


def make_scored_search(
    spec: OptimizeSpec, table: CoefficientTable, *, score: Score
) -> CoefficientSearch:
    """Return the declared optimiser if it needs nothing but losses of recipes.

    Args:
        spec: The declared optimisation, with ``cma_es`` or ``lm_cocktail``.
        table: Which coefficients there are.
        score: Losses of recipes.
    """
    if isinstance(spec.optimizer, LmCocktail):
        return CocktailSearch(spec, score)
    return EvolutionSearch(spec, table, score)


def compared_recipes(spec: OptimizeSpec, result: MergeRecipe) -> dict[str, MergeRecipe]:
    """Return what a result is compared with, by name: base, experts, plain mean, then itself."""
    recipes = parent_recipes(spec)
    if len(spec.experts) > 1:
        recipes[MEAN] = mean_recipe(spec)
    return {**recipes, RESULT: result}
