"""Recipes that may leave the machine: hub ids and relative paths, no folder above them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safemerge.config.checkpoint import CheckpointRef, StatisticsRef
from safemerge.config.recipe import MergeRecipe, changed_models
from safemerge.config.source import SeenData


def portable_path(path: str, folder: Path) -> str:
    """Return a path as one relative to a folder.

    A relative path names what lies below the nearest common folder only. If there is none below
    the root and the folder of all homes, the last part alone is kept: it names nothing of the
    machine, and leads nowhere until the model is put beside the file.

    Args:
        path: A folder or file, absolute.
        folder: What the path is taken from, e.g. the folder of the recipe's file.
    """
    given = Path(path)
    if not given.is_absolute():
        return path
    place, start = os.path.normpath(given), os.path.normpath(folder.absolute())
    common = Path(os.path.commonpath([place, start]))
    if common in {Path(common.anchor), Path.home().parent, Path("/home"), Path("/Users")}:
        return given.name
    return Path(os.path.relpath(place, start)).as_posix()


def portable_recipe(recipe: MergeRecipe, folder: Path) -> MergeRecipe:
    """Return a recipe without absolute paths; read from `folder`, it is the same merge.

    Args:
        recipe: Located; a model of the hub keeps its repository and commit, not where it was
            found.
        folder: Folder of the file that it is written to.
    """
    update = changed_models(recipe.checkpoints, lambda ref: _portable(ref, folder))
    update["seen"] = [_portable_data(item, folder) for item in recipe.seen]
    return recipe.model_copy(update=update)


def portable_document(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a stored recipe's document likewise; see `portable_recipe`."""
    return portable_recipe(MergeRecipe.model_validate(document), folder).resolved()


def _portable(ref: CheckpointRef, folder: Path) -> CheckpointRef:
    changes: dict[str, Any] = {
        key: portable_path(given, folder)
        for key in ("path", "align", "finetune")
        if (given := getattr(ref, key)) is not None
    }
    if ref.hub is not None:
        changes["path"] = None
    if ref.statistics is not None:
        changes["statistics"] = _portable_statistics(ref.statistics, folder)
    moved = ref.model_copy(update=changes)
    return moved.with_parts([_portable(part, folder) for part in ref.parts])


def _portable_statistics(ref: StatisticsRef, folder: Path) -> StatisticsRef:
    return ref.model_copy(
        update={
            key: portable_path(given, folder)
            for key in ("gather", "path")
            if (given := getattr(ref, key)) is not None
        }
    )


def _portable_data(item: SeenData, folder: Path) -> SeenData:
    path = getattr(item.data.source, "path", None)
    if path is None:
        return item
    source = item.data.source.model_copy(update={"path": portable_path(path, folder)})
    return item.model_copy(update={"data": item.data.model_copy(update={"source": source})})
