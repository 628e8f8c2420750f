"""Writing a point of a run's front: as a checkpoint, as a recipe, to the Hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safemerge.api.declared import Recipe, StrPath, save_yaml
from safemerge.api.merge import (
    MergedCheckpoint,
    as_mergekit,
    check_form,
    check_out,
    write,
    write_as_adapter,
)
from safemerge.api.pick import defects, pick_point, published_front
from safemerge.api.place import local_folder
from safemerge.api.progress import Progress, Say
from safemerge.api.run import Run
from safemerge.api.stored import check_stored
from safemerge.config.checkpoint import is_hub_id
from safemerge.config.portable import portable_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import UserError
from safemerge.reports.run import load_run as read_run

if TYPE_CHECKING:
    from safemerge.records import FrontPoint
    from safemerge.reports.run import Run as StoredRun


class Hub(Protocol):
    """What is asked of the Hub: two calls of `huggingface_hub.HfApi`."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository of a model, if it is missing."""

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        """Upload a folder's files in one commit."""


def export(
    run: Run | StrPath,
    pick: str | int,
    out: StrPath,
    *,
    as_stored: bool = False,
    adapter: bool = False,
    rank: int | None = None,
    modules_to_save: bool = False,
    progress: Say | None = None,
) -> MergedCheckpoint:
    """Write a point of a run's front as a checkpoint, with a card that says what was measured.

    Args:
        run: A run, its folder, or its URL.
        pick: ``knee``, ``safest`` or ``best:METRIC``, all among the points that keep every limit
            on the report split; or any trial of the front by its number.
        out: Folder to write; must be missing or empty.
        as_stored: Do so although data or models are no longer those that the run was made with.
        adapter: Write one LoRA adapter instead of a whole model. Without `rank` it is the exact
            merge of LoRA experts by task_arithmetic or linear.
        rank: With `adapter`, replace each weight's update by the nearest of this rank, whatever
            was merged how, and say what that loses. What was measured is the whole merge.
        modules_to_save: With `rank`, store modules whole whose update no factors can hold
            (norms, embeddings, output head); they are left out otherwise, and a merge is
            refused that has more than 1 % of its update's Frobenius norm there.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Raises:
        UserError: If there is no such run, front or point, the folder cannot be written, or no
            such adapter can be.
        ChangedRunError: If data or models changed; names all of it.
        MergeError: If the merge cannot be computed.
    """
    from safemerge.reports import model_card

    lines = Progress(progress)
    check_form(adapter=adapter, rank=rank)
    if modules_to_save and rank is None:
        raise UserError("modules_to_save: needs rank; got none. Add rank (--rank N).")
    stored, point = _picked(run, pick)
    check_stored(stored.folder, lines, as_stored=as_stored)
    _say_picked(stored, point, lines)
    recipe = MergeRecipe.model_validate(point.recipe)
    place = check_out(out, recipe)
    if not adapter:
        return write(recipe, place, lines, card=model_card(stored, point.number))
    return write_as_adapter(
        recipe,
        place,
        lines,
        rank=rank,
        nearest=True,
        modules_to_save=modules_to_save,
        card=lambda form: model_card(stored, point.number, adapter=form),
    )


def export_recipe(
    run: Run | StrPath,
    pick: str | int,
    *,
    recipe: StrPath | None = None,
    mergekit: StrPath | None = None,
    progress: Say | None = None,
) -> Recipe:
    """Write the recipe of a point of a run's front, without weights.

    Models of the hub are named by their repositories and commits, others by paths relative to
    the file. mergekit takes those from the folder that it runs in: run it beside the file.

    Args:
        run: A run, its folder, or its URL.
        pick: As for `export`.
        recipe: File to write, as `safemerge merge` reads it.
        mergekit: The same as a mergekit file.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Returns:
        The recipe, located.

    Raises:
        UserError: If there is no such run, front or point.
        ConfigError: If mergekit cannot express the recipe; nothing was written.
        PreflightError: If a file cannot be written.
    """
    lines = Progress(progress)
    stored, point = _picked(run, pick)
    _say_picked(stored, point, lines)
    found = MergeRecipe.model_validate(point.recipe)
    documents: list[tuple[Path, dict[str, Any], str]] = []
    if recipe is not None:
        place = Path(os.fspath(recipe)).absolute()
        document = portable_recipe(found, place.parent).resolved()
        documents.append((place, document, f"recipe: {recipe}"))
    if mergekit is not None:
        place = Path(os.fspath(mergekit)).absolute()
        document = as_mergekit(found, place.parent)
        documents.append((place, document, f"mergekit file: {mergekit}"))
    for place, document, said in documents:
        save_yaml(document, place)
        lines.say(said)
        _say_missing(portable_recipe(found, place.parent).located(place.parent), lines)
    return Recipe.of(found)


def push(
    folder: StrPath, repository: str, *, hub: Hub | None = None, progress: Say | None = None
) -> str:
    """Upload a checkpoint to the Hugging Face Hub; a new repository is private.

    Args:
        folder: What `export` or `merge` wrote.
        repository: ``ORG/NAME``.
        hub: Who uploads; `huggingface_hub.HfApi`, with its own token, if left out.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Returns:
        The page of the repository.

    Raises:
        UserError: If the name is none, there is no such folder, or the Hub refuses.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, errors

    check_repository(repository)
    place, lines = Path(os.fspath(folder)), Progress(progress)
    if not (place / "README.md").is_file():
        raise UserError(f"{place}: must be a checkpoint with a card; got none. Export it first.")
    asked = hub or HfApi()
    page = f"https://huggingface.co/{repository}"
    lines.say(f"uploading {place} to {page}")
    try:
        asked.create_repo(repository, private=True, exist_ok=True)
        asked.upload_folder(
            repo_id=repository, folder_path=place, commit_message="Upload a safemerge merge"
        )
    except (HTTPError, errors.HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"push {repository}: the Hub must take it; got: {reason[0].rstrip('.')}. {place} is "
            f"whole. Log in with `hf auth login`, then run `{upload_command(repository, place)}`."
        ) from error
    lines.say(f"uploaded: {page}")
    return page


def check_repository(repository: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        UserError: If so.
    """
    if not is_hub_id(repository):
        raise UserError(
            f"push: must be a repository of the Hub, ORG/NAME; got {repository!r}. Change it."
        )


def upload_command(repository: str, folder: StrPath) -> str:
    """Return the command that uploads a folder by hand."""
    import shlex

    return shlex.join(["hf", "upload", repository, str(folder), "--private"])


def _say_missing(recipe: MergeRecipe, lines: Progress) -> None:
    """Say which models a recipe file does not find: those that share no folder with it."""
    missing = [
        ref.name
        for ref in recipe.checkpoints
        if ref.path is not None and not Path(ref.path).exists()
    ]
    if missing:
        lines.say(
            f"note: not found from this file: {', '.join(missing)}. Put these models beside it, "
            "or correct their paths: only folders that they share with the file are written"
        )


def _picked(run: Run | StrPath, pick: str | int) -> tuple[StoredRun, FrontPoint]:
    folder = run.folder if isinstance(run, Run) else local_folder(run)
    stored = read_run(folder)
    front = published_front(stored)
    return stored, pick_point(front, str(pick), spec=stored.spec, where=str(folder))


def _say_picked(stored: StoredRun, point: FrontPoint, lines: Progress) -> None:
    lines.say(f"picked {point.label} (candidate {point.candidate})")
    for problem in defects(stored.spec, point.report):
        lines.say(f"note: on the report split, {problem}")
