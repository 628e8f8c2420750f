"""All models of a study in one recipe, for opening and checking them together."""

from __future__ import annotations

from collections.abc import Sequence

from safemerge.config.checkpoint import CheckpointRef, Vocabulary
from safemerge.config.recipe import Linear, MergeRecipe


def models_recipe(
    base: CheckpointRef,
    experts: Sequence[CheckpointRef],
    *,
    dtype: str = "base",
    vocabulary: Vocabulary = "refuse",
) -> MergeRecipe:
    """Return a recipe over every model that reproduces the base.

    Args:
        base: The base.
        experts: Every expert that other recipes may name.
        dtype: The study's dtype.
        vocabulary: The study's vocabulary.
    """
    return MergeRecipe(
        base=base,
        experts=list(experts),
        method=Linear(name="linear", weights={base.name: 1.0}),
        dtype=dtype,  # type: ignore[arg-type]
        vocabulary=vocabulary,
    )
