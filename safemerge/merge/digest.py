"""A recipe's digests against the weights that are in its folders now."""

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import CheckpointChangedError
from safemerge.weights.fingerprint import fingerprint


def check_digests(recipe: MergeRecipe) -> None:
    """Check that the weights in a recipe's folders have the digests that it says.

    Args:
        recipe: Resolved recipe; models without digest are not looked at.

    Raises:
        CheckpointError: If a checkpoint cannot be read.
        CheckpointChangedError: If the weights are others.
    """
    for ref in recipe.checkpoints:
        _check_digest(f"recipe {recipe.digest[:4]}", ref)


def _check_digest(where: str, ref: CheckpointRef) -> None:
    for part in ref.parts:
        _check_digest(where, part)
    if ref.digest is None or ref.path is None:
        return
    found = ref.composed_digest(fingerprint(ref.path))
    if found != ref.digest:
        raise CheckpointChangedError(
            f"{where}, model '{ref.name}': weights must have the fingerprint of the recipe, "
            f"{ref.digest}; got {found} in '{ref.path}'. Use the checkpoint the recipe was made "
            f"with, or drop its digest."
        )
