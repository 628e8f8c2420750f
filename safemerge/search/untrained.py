"""Recipes over models that are still to be trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from safemerge.config.checkpoint import CheckpointRef, interpolated
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.errors import StudyError
from safemerge.records import TrialRecord


def untrained_paths(spec: StudySpec) -> set[str]:
    """Return the folders of a study's variants that are not trained yet."""
    return {str(ref.path) for ref in spec.trained if ref.name in spec.untrained}


def wanted_paths(recipe: MergeRecipe, untrained: Collection[str]) -> list[str]:
    """Return which folders have to be there before a recipe can be merged.

    Args:
        recipe: The recipe.
        untrained: Folders of models that are not trained yet.
    """
    found = [end.path for ref in recipe.experts for end in _ends(ref)]
    return list(dict.fromkeys(path for path in found if path is not None and path in untrained))


def supplied(recipe: MergeRecipe, made: CheckpointRef) -> MergeRecipe:
    """Return a recipe with a model that is trained now, under the name that it has there.

    Args:
        recipe: A recipe that may name the model's folder.
        made: The model, with its fingerprint.
    """
    by_name = {ref.name: _with(ref, made) for ref in recipe.checkpoints}
    return recipe.with_checkpoints(by_name)


def is_interpolated(recipe: MergeRecipe) -> bool:
    """Tell whether a recipe takes weights between two checkpoints."""
    return any(ref.between is not None for ref in recipe.experts)


def _ends(ref: CheckpointRef) -> tuple[CheckpointRef, ...]:
    return (ref,) if ref.between is None else ref.between.ends


def _with(ref: CheckpointRef, made: CheckpointRef) -> CheckpointRef:
    if ref.between is not None:
        neighbours = ref.between.with_ends(lambda end: _with(end, made))
        return interpolated(ref.name, neighbours)
    return made.model_copy(update={"name": ref.name}) if ref.path == made.path else ref


def check_weights(records: Iterable[TrialRecord], refs: Sequence[CheckpointRef]) -> None:
    """Refuse models that are not those of a run's finished trials, though trained from the same.

    Args:
        records: Finished trials.
        refs: Models that were trained; their folders are named by content.

    Raises:
        StudyError: If a folder had other weights, as after training again on another machine.
    """
    now = {Path(ref.path).name: ref for ref in refs if ref.path is not None and ref.digest}
    for record in records:
        for name, end in record.experts():
            ref = now.get(Path(end.get("path") or "").name)
            before = end.get("digest")
            if ref is not None and before is not None and before != ref.digest:
                raise StudyError(
                    f"trial {record.number}: model '{name}' must still have the weights it had, "
                    f"{before}; got {ref.digest} in {ref.path}, trained again from the same file "
                    "and data (another machine rounds otherwise). Bring the folder back, or use "
                    "a new study name."
                )
