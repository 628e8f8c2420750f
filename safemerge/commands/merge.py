"""``safemerge merge``: a recipe's checkpoint on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from safemerge.commands.console import Console
from safemerge.commands.mergekit import check_presumed
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import parse_document, read_yaml
from safemerge.config.mergekit import is_mergekit, recipe_of_mergekit
from safemerge.config.mergekit_export import mergekit_of_recipe
from safemerge.config.mergekit_folders import locate_models
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import UserError
from safemerge.files import disk_errors, replace_file

if TYPE_CHECKING:
    import argparse

    from safemerge.merge.resident import ResidentCheckpoints


def run(options: argparse.Namespace) -> None:
    """Merge and write."""
    console = Console()
    path = Path(options.recipe)
    document, mergekit = read_yaml(path), None
    if is_mergekit(document):
        mergekit = recipe_of_mergekit(document, where=str(path))
        document = mergekit.document
        console.say(f"{path} is a mergekit file; merging what it asks for")
        for note in (*mergekit.notes, *locate_models(document, path.absolute(), Path.cwd())):
            console.say(note)
    recipe = parse_document(document, MergeRecipe, where=str(path))
    recipe = recipe.located(path.resolve().parent)
    _check_form(options, recipe)
    out = check_out(options.out, recipe)
    recipe = resolve_recipe(recipe, console)
    if mergekit is not None:
        recipe = check_presumed(recipe, mergekit, console, where=str(path))
    exported = _as_mergekit(recipe) if options.mergekit is not None else None
    if options.adapter:
        write_as_adapter(recipe, out, console, rank=options.rank)
    else:
        write(recipe, out, console)
    if exported is not None:
        text = yaml.safe_dump(exported, sort_keys=False, allow_unicode=True)
        target = Path(options.mergekit).absolute()
        with disk_errors(target.parent):
            replace_file(target, text)
        console.say(f"mergekit file: {options.mergekit}")


def _as_mergekit(recipe: MergeRecipe) -> dict[str, Any]:
    from safemerge.weights.adapter import is_adapter

    adapters = [ref.name for ref in recipe.experts if is_adapter(str(ref.path))]
    return mergekit_of_recipe(recipe, adapters=adapters)


def _check_form(options: argparse.Namespace, recipe: MergeRecipe) -> None:
    if options.rank is not None and not options.adapter:
        raise UserError(f"--rank: needs --adapter; got {options.rank} without it. Add --adapter.")
    if options.rank is not None and options.rank < 1:
        raise UserError(f"--rank: must be at least 1; got {options.rank}. Make it larger.")
    if options.adapter:
        from safemerge.merge.lora import check_adapter_recipe

        check_adapter_recipe(recipe)


def check_out(out: str, recipe: MergeRecipe) -> Path:
    """Refuse an output folder before any checkpoint is read.

    Args:
        out: As given.
        recipe: Located; its folders are read.

    Returns:
        The folder, as given.

    Raises:
        UserError, PreflightError: See `free_place`.
    """
    from safemerge.merge.folder import free_place

    free_place(out, inputs=[ref.path for ref in recipe.checkpoints if ref.path is not None])
    return Path(out)


def resolve_recipe(recipe: MergeRecipe, console: Console) -> MergeRecipe:
    """Return the recipe with every checkpoint on disk; a cluster starts only if one is made."""
    from safemerge.distributed.ingredient import Ingredients
    from safemerge.distributed.statistics import check_quantities

    check_quantities([recipe])
    ingredients = Ingredients(say=console.say, on_step=console.training_step)
    resolved: dict[str, CheckpointRef] = ingredients.resolve(recipe.checkpoints)
    return recipe.with_checkpoints(resolved)


def write(
    recipe: MergeRecipe,
    out: Path,
    console: Console,
    *,
    card: str | None = None,
) -> None:
    """Write a resolved recipe's checkpoint, with a line of progress now and then.

    Args:
        recipe: The recipe, every checkpoint given by path.
        out: Folder to write.
        console: Where progress is told.
        card: Model card to write instead of the merge's own.
    """
    from safemerge.merge.writer import write_merged

    resident = _open(recipe, console)
    tenths: set[int] = set()

    def progress(done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth not in tenths:
            tenths.add(tenth)
            console.say(f"merging: {10 * tenth} % of {total} tensors")

    write_merged(
        recipe,
        resident.checkpoints,
        out,
        progress=progress,
        thresholds=resident.thresholds,
        spectra=resident.spectra,
        statistics=resident.statistics,
        card=card,
    )
    console.say(f"merged checkpoint: {out} (candidate {recipe.digest})")


def write_as_adapter(
    recipe: MergeRecipe,
    out: Path,
    console: Console,
    *,
    rank: int | None = None,
) -> None:
    """Write a resolved recipe over LoRA adapters as one adapter, and say what was lost.

    Args:
        recipe: The recipe, every checkpoint given by path.
        out: Folder to write.
        console: Where progress is told.
        rank: Largest rank of a module; None for the sum of ranks.
    """
    from safemerge.merge.adapter import write_adapter

    merged = write_adapter(recipe, _open(recipe, console).checkpoints, out, rank=rank)
    largest = max(product.rank for product in merged.products.values())
    console.say(f"merged adapter: {out} (candidate {recipe.digest}), rank {largest}")
    name, worst = merged.worst
    if rank is not None:
        console.say(
            f"lost by rank {rank}: {merged.lost:.3e} of the update's Frobenius norm, "
            f"{worst:.3e} at most in one weight ({name})"
        )


def _open(recipe: MergeRecipe, console: Console) -> ResidentCheckpoints:
    from safemerge.merge.resident import ResidentCheckpoints

    console.say(f"checking {len(recipe.checkpoints)} checkpoints")
    resident = ResidentCheckpoints.open(recipe)
    for notice in resident.notices:
        console.say(f"note: {notice}")
    return resident
