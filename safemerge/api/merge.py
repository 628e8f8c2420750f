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
    from collections.abc import Callable

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
    check_form(adapter=adapter, rank=rank)
    if adapter:
        from safemerge.merge.lora import check_adapter_recipe

        check_adapter_recipe(spec)
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


def check_form(*, adapter: bool, rank: int | None) -> None:
    """Refuse a rank that is none, or is asked of a whole model.

    Raises:
        UserError: If so.
    """
    if rank is not None and not adapter:
        raise UserError(f"rank: needs adapter; got {rank} without it. Add adapter (--adapter).")
    if rank is not None and rank < 1:
        raise UserError(f"rank: must be at least 1; got {rank}. Make it larger.")


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
    write_merged(
        recipe,
        resident.checkpoints,
        out,
        progress=_tenths(progress),
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
    nearest: bool = False,
    modules_to_save: bool = False,
    card: Callable[[str], str] | None = None,
) -> MergedCheckpoint:
    """Write a resolved recipe as one adapter, and say what was lost.

    Args:
        recipe: The recipe, every checkpoint given by path.
        out: Folder to write.
        progress: Where lines of progress go.
        rank: Largest rank of a module; None for the sum of ranks.
        nearest: Whether a merge that is no sum of LoRA factors is taken too, and replaced by
            the nearest adapter of `rank`, which must be given.
        modules_to_save: Whether that adapter stores whole what no factors can hold.
        card: Gives the model card for a sentence that says what the adapter is; None for the
            merge's own.
    """
    from safemerge.merge.adapter import write_adapter, write_nearest_adapter
    from safemerge.merge.lora import is_factored

    resident = _open(recipe, progress)
    if not nearest or rank is None or is_factored(recipe, resident.checkpoints):
        merged = write_adapter(recipe, resident.checkpoints, out, rank=rank, card=card)
    else:
        merged = write_nearest_adapter(
            recipe,
            resident.checkpoints,
            out,
            rank=rank,
            modules_to_save=modules_to_save,
            thresholds=resident.thresholds,
            spectra=resident.spectra,
            statistics=resident.statistics,
            progress=_tenths(progress),
            card=card,
        )
    largest = max(product.rank for product in merged.products.values())
    progress.say(f"merged adapter: {out} (candidate {recipe.digest}), rank {largest}")
    name, worst = merged.worst
    if rank is not None:
        progress.say(
            f"lost by rank {rank}: {merged.lost:.3e} of the update's Frobenius norm, "
            f"{worst:.3e} at most in one weight ({name})"
        )
    if merged.left_out:
        progress.say(
            f"left out: {len(merged.left_out)} tensors that no LoRA factors hold, "
            f"{merged.left_out_share:.3e} of that norm ({', '.join(merged.left_out[:3])}"
            f"{', ...' if len(merged.left_out) > 3 else ''})"
        )
    lost = None if rank is None else merged.lost
    return MergedCheckpoint(out, recipe.digest, Recipe.of(recipe), rank=largest, lost=lost)


def _tenths(progress: Progress) -> Callable[[int, int], None]:
    """Return what says how many tensors are merged, ten times at most."""
    tenths: set[int] = set()

    def on_tensor(done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if tenth not in tenths:
            tenths.add(tenth)
            progress.say(f"merging: {10 * tenth} % of {total} tensors")

    return on_tensor


def _open(recipe: MergeRecipe, progress: Progress) -> ResidentCheckpoints:
    from safemerge.merge.resident import ResidentCheckpoints

    progress.say(f"checking {len(recipe.checkpoints)} checkpoints")
    resident = ResidentCheckpoints.open(recipe)
    for notice in resident.notices:
        progress.say(f"note: {notice}")
    return resident
