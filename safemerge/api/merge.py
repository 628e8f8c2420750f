"""Writing the checkpoint of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.api.declared import Recipe, StrPath, as_recipe, save_yaml
from safemerge.api.mergekit import check_presumed
from safemerge.api.progress import Progress, Say
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.mergekit_export import mergekit_of_recipe
from safemerge.config.portable import portable_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import UserError

if TYPE_CHECKING:
    from safemerge.merge.resident import ResidentCheckpoints


class MergedCheckpoint(NamedTuple):
    """A merge on disk."""

    path: Path
    """Its folder: safetensors, config, tokenizer and model card; or one adapter."""
    candidate: str
    """The recipe's digest."""
    recipe: Recipe
    """What was merged, every model with its folder and fingerprint."""
    rank: int | None = None
    """Largest rank of an adapter's modules; None for a whole model."""
    lost: float | None = None
    """Relative Frobenius norm that reducing an adapter's rank lost of the update; None if it was
    not reduced."""


def merge(
    recipe: Recipe | StrPath,
    out: StrPath,
    *,
    mergekit: StrPath | None = None,
    adapter: bool = False,
    rank: int | None = None,
    progress: Say | None = None,
) -> MergedCheckpoint:
    """Write the checkpoint of a recipe.

    Args:
        recipe: A recipe, or its file; a mergekit file is translated.
        out: Folder to write; must be missing or empty.
        mergekit: Also write the recipe there, as a mergekit file; models of the hub by
            repository and commit, others by paths relative to the file. mergekit takes those
            from the folder that it runs in.
        adapter: Write one LoRA adapter instead of a whole model: the exact merge of LoRA experts
            by task_arithmetic or linear, its rank the sum of theirs.
        rank: With `adapter`, reduce each module to the nearest update of this rank.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Raises:
        UserError: If recipe, models or folder are wrong; nothing was written.
        MergeError: If the merge cannot be computed.
        TrainingError: If a model that had to be trained could not be.
    """
    lines = Progress(progress)
    given = as_recipe(recipe)
    if given.mergekit is not None:
        lines.say(f"{given.source} is a mergekit file; merging what it asks for")
    for note in given.notes:
        lines.say(note)
    spec = given.spec
    _check_form(spec, adapter=adapter, rank=rank)
    folder = check_out(out, spec)
    spec = resolve_recipe(spec, lines)
    if given.mergekit is not None:
        spec = check_presumed(spec, given.mergekit, lines, where=str(given.source))
    place = None if mergekit is None else Path(mergekit).absolute()
    exported = None if place is None else as_mergekit(spec, place.parent)
    if adapter:
        merged = write_as_adapter(spec, folder, lines, rank=rank)
    else:
        merged = write(spec, folder, lines)
    if place is not None and exported is not None:
        save_yaml(exported, place)
        lines.say(f"mergekit file: {mergekit}")
    return merged


def as_mergekit(recipe: MergeRecipe, folder: Path) -> dict[str, Any]:
    """Return a located recipe as the mergekit file of a folder, without absolute paths.

    Raises:
        ConfigError: If mergekit cannot express the recipe.
    """
    from safemerge.weights.adapter import is_adapter

    adapters = [ref.name for ref in recipe.experts if is_adapter(str(ref.path))]
    return mergekit_of_recipe(portable_recipe(recipe, folder), adapters=adapters)


def _check_form(recipe: MergeRecipe, *, adapter: bool, rank: int | None) -> None:
    if rank is not None and not adapter:
        raise UserError(f"rank: needs adapter; got {rank} without it. Add adapter (--adapter).")
    if rank is not None and rank < 1:
        raise UserError(f"rank: must be at least 1; got {rank}. Make it larger.")
    if adapter:
        from safemerge.merge.lora import check_adapter_recipe

        check_adapter_recipe(recipe)


def check_out(out: StrPath, recipe: MergeRecipe) -> Path:
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

    free_place(str(out), inputs=[ref.path for ref in recipe.checkpoints if ref.path is not None])
    return Path(out)


def resolve_recipe(recipe: MergeRecipe, progress: Progress) -> MergeRecipe:
    """Return the recipe with every checkpoint on disk; a cluster starts only if one is made."""
    from safemerge.distributed.ingredient import Ingredients
    from safemerge.distributed.statistics import check_quantities

    check_quantities([recipe])
    ingredients = Ingredients(say=progress.say, on_step=progress.training_step)
    resolved: dict[str, CheckpointRef] = ingredients.resolve(recipe.checkpoints)
    return recipe.with_checkpoints(resolved)


def write(
    recipe: MergeRecipe,
    out: Path,
    progress: Progress,
    *,
    card: str | None = None,
) -> MergedCheckpoint:
    """Write a resolved recipe's checkpoint, with a line of progress now and then.

    Args:
        recipe: The recipe, every checkpoint given by path.
        out: Folder to write.
        progress: Where lines of progress go.
        card: Model card to write instead of the merge's own.
    """
    from safemerge.merge.writer import write_merged

    resident = _open(recipe, progress)
    tenths: set[int] = set()

    def on_tensor(done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth not in tenths:
            tenths.add(tenth)
            progress.say(f"merging: {10 * tenth} % of {total} tensors")

    write_merged(
        recipe,
        resident.checkpoints,
        out,
        progress=on_tensor,
        thresholds=resident.thresholds,
        spectra=resident.spectra,
        statistics=resident.statistics,
        card=card,
    )
    progress.say(f"merged checkpoint: {out} (candidate {recipe.digest})")
    return MergedCheckpoint(out, recipe.digest, Recipe.of(recipe))


def write_as_adapter(
    recipe: MergeRecipe,
    out: Path,
    progress: Progress,
    *,
    rank: int | None = None,
) -> MergedCheckpoint:
    """Write a resolved recipe over LoRA adapters as one adapter, and say what was lost.

    Args:
        recipe: The recipe, every checkpoint given by path.
        out: Folder to write.
        progress: Where lines of progress go.
        rank: Largest rank of a module; None for the sum of ranks.
    """
    from safemerge.merge.adapter import write_adapter

    merged = write_adapter(recipe, _open(recipe, progress).checkpoints, out, rank=rank)
    largest = max(product.rank for product in merged.products.values())
    progress.say(f"merged adapter: {out} (candidate {recipe.digest}), rank {largest}")
    name, worst = merged.worst
    if rank is not None:
        progress.say(
            f"lost by rank {rank}: {merged.lost:.3e} of the update's Frobenius norm, "
            f"{worst:.3e} at most in one weight ({name})"
        )
    lost = None if rank is None else merged.lost
    return MergedCheckpoint(out, recipe.digest, Recipe.of(recipe), rank=largest, lost=lost)


def _open(recipe: MergeRecipe, progress: Progress) -> ResidentCheckpoints:
    from safemerge.merge.resident import ResidentCheckpoints

    progress.say(f"checking {len(recipe.checkpoints)} checkpoints")
    resident = ResidentCheckpoints.open(recipe)
    for notice in resident.notices:
        progress.say(f"note: {notice}")
    return resident
