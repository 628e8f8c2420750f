"""``safemerge merge``: a recipe's checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Merge and write."""
    console = Console()
    path = Path(options.recipe)
    recipe = load_document(path, MergeRecipe).located(path.resolve().parent)
    write(resolve_recipe(recipe, console), Path(options.out), console)


def resolve_recipe(recipe: MergeRecipe, console: Console) -> MergeRecipe:
    """Return the recipe with every checkpoint on disk; a cluster starts only to train one."""
    from safemerge.distributed.ingredient import Ingredients, stage_file

    ingredients = Ingredients(say=console.say, on_step=console.training_step)
    if any(stage_file(ref) is not None for ref in recipe.checkpoints):
        from safemerge.distributed.cluster import ray_cluster

        with ray_cluster():
            resolved: dict[str, CheckpointRef] = ingredients.resolve(recipe.checkpoints)
    else:
        resolved = ingredients.resolve(recipe.checkpoints)
    return recipe.with_checkpoints(resolved)


def write(recipe: MergeRecipe, out: Path, console: Console, *, card: str | None = None) -> None:
    """Write a resolved recipe's checkpoint, with a line of progress now and then."""
    from safemerge.merge.resident import ResidentCheckpoints
    from safemerge.merge.writer import write_merged

    console.say(f"checking {len(recipe.checkpoints)} checkpoints")
    resident = ResidentCheckpoints.open(recipe)
    tenths: set[int] = set()

    def progress(done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth not in tenths:
            tenths.add(tenth)
            console.say(f"merging: {10 * tenth} % of {total} tensors")

    write_merged(recipe, resident.checkpoints, out, progress=progress, card=card)
    console.say(f"merged checkpoint: {out} (candidate {recipe.digest})")
