"""``safemerge export``: a point of a run's front, as a checkpoint or as a recipe."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from safemerge.api.export import (
    check_repository,
    export,
    export_recipe,
    push,
    upload_command,
)
from safemerge.api.merge import check_form
from safemerge.commands.console import Console
from safemerge.errors import UserError

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Pick, merge, write, with a model card that says what was measured."""
    _check(options)
    console = Console()
    if options.recipe is not None or options.mergekit is not None:
        export_recipe(
            options.run,
            options.pick,
            recipe=options.recipe,
            mergekit=options.mergekit,
            progress=console.say,
        )
    if options.out is None:
        return
    merged = export(
        options.run,
        options.pick,
        options.out,
        as_stored=options.as_stored,
        adapter=options.adapter,
        rank=options.rank,
        modules_to_save=options.modules_to_save,
        progress=console.say,
    )
    if options.push is None:
        console.say(f"to publish it: {upload_command('ORG/NAME', options.out)}")
    elif options.yes or _confirmed(options.push, options.out):
        push(merged.path, options.push, progress=console.say)
    else:
        console.say(f"not uploaded; later: {upload_command(options.push, options.out)}")


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is read."""
    if options.out is None and options.recipe is None and options.mergekit is None:
        raise UserError(
            "export: needs a folder for the checkpoint (OUT_DIR), or --recipe or --mergekit FILE "
            "for the recipe alone; got none. Name one."
        )
    check_form(adapter=options.adapter, rank=options.rank)
    if options.adapter and options.out is None:
        raise UserError("export: --adapter writes a folder; got no OUT_DIR. Name one.")
    if options.push is None:
        return
    check_repository(options.push)
    if options.out is None:
        raise UserError("export: --push uploads a checkpoint; got no OUT_DIR. Name one.")
    if not options.yes and not sys.stdin.isatty():
        raise UserError(
            "export: --push asks before it uploads; got no terminal to ask on. Add --yes."
        )


def _confirmed(repository: str, folder: str) -> bool:
    asked = f"Upload {folder} to https://huggingface.co/{repository} (private if new)? [y/N] "
    try:
        return input(asked).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        print()
        return False
