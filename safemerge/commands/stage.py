"""Running one training file as a command: train, or find it cached; leave a run folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.config.checkpoint import CheckpointRef
from safemerge.files import disk_errors
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    import argparse


def run_stage(options: argparse.Namespace, kind: str) -> None:
    """Train a stage and link its checkpoint and metrics into a run folder.

    The checkpoint itself lives in the cache, by content digest, where studies find it.
    """
    from safemerge.distributed.ingredient import Ingredients, load_training_spec
    from safemerge.training.log import EVENTS_FOLDER, LOG_FILE

    console = Console()
    spec = load_training_spec(options.spec, kind)
    store = RunFolder.under(options.results, spec.name)
    store.check_disk()
    reference = CheckpointRef.model_validate(
        {"name": spec.name, kind: str(Path(options.spec).resolve())}
    )
    ingredients = Ingredients(
        say=console.say, on_step=console.training_step, resume=options.resume
    )
    resolved = ingredients.resolve([reference])[spec.name]
    checkpoint = Path(str(resolved.path))
    work = checkpoint.with_name(checkpoint.name + ".work")
    if (work / LOG_FILE).exists():
        store.write(LOG_FILE, (work / LOG_FILE).read_bytes())
    if (work / EVENTS_FOLDER).exists():
        with disk_errors(store.folder):
            events = store.folder / EVENTS_FOLDER
            shutil.copytree(work / EVENTS_FOLDER, events, dirs_exist_ok=True)
    store.write_json("checkpoint.json", {"path": str(checkpoint), "digest": resolved.digest})
    console.say(f"checkpoint: {checkpoint}")
    console.say(f"next: name it in a study, `{{name: {spec.name}, {kind}: {options.spec}}}`")
