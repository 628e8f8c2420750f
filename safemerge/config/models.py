"""All models of a study in one recipe, for opening and checking them together."""

from __future__ import annotations

from collections.abc import Sequence

from safemerge.config.checkpoint import CheckpointRef, Vocabulary
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.config.tokenizer import TokenizerChoice


def models_recipe(
    base: CheckpointRef,
    experts: Sequence[CheckpointRef],
    *,
    dtype: str = "base",
    vocabulary: Vocabulary = "refuse",
    tokenizer: TokenizerChoice | None = None,
) -> MergeRecipe:
    """Return a recipe over every model that reproduces the base.

    Args:
        base: The base.
        experts: Every expert that other recipes may name.
        dtype: The study's dtype.
        vocabulary: The study's vocabulary.
        tokenizer: The study's choice of tokenizer and template; the base's if None.
    """
    return MergeRecipe(
        base=base,
        experts=list(experts),
        method=Linear(name="linear", weights={base.name: 1.0}),
        dtype=dtype,  # type: ignore[arg-type]
        vocabulary=vocabulary,
        tokenizer=tokenizer or TokenizerChoice(),
    )


def study_models(spec: StudySpec) -> MergeRecipe:
    """Return `models_recipe` over every model that a recipe of a study may name, and that exists.

    Variants of an expert are among them under names of their own; a recipe names the expert and
    tells the variant by its digest. Those still to be trained are left out.
    """
    experts = spec.made_checkpoints[1:]
    return models_recipe(
        spec.base,
        experts,
        dtype=spec.dtype,
        vocabulary=spec.vocabulary,
        tokenizer=spec.tokenizer,
    )
