"""Running one training file as a command: train, or find it cached; leave a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.commands.folder import check_disk, run_folder
from safemerge.config.checkpoint import CheckpointRef
from safemerge.files import disk_errors, replace_file

if TYPE_CHECKING:
    import argparse


def run_stage(options: argparse.Namespace, kind: str) -> None:
    """Train a stage and link its checkpoint and metrics into a run folder.

    The checkpoint itself lives in the cache, by content digest, where studies find it.
    """
    from safemerge.distributed.ingredient import Ingredients, load_training_spec

    console = Console()
    spec = load_training_spec(options.spec, kind)
    folder = run_folder(options.results, spec.name)
    check_disk(folder)
    reference = CheckpointRef.model_validate(
        {"name": spec.name, kind: str(Path(options.spec).resolve())}
    )
    ingredients = Ingredients(
        say=console.say, on_step=console.training_step, resume=options.resume
    )
    resolved = ingredients.resolve([reference])[spec.name]
    checkpoint = Path(str(resolved.path))
    work = checkpoint.with_name(checkpoint.name + ".work")
    document = {"path": str(checkpoint), "digest": resolved.digest}
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if (work / "metrics.jsonl").exists():
            replace_file(folder / "metrics.jsonl", (work / "metrics.jsonl").read_bytes())
        if (work / "tensorboard").exists():
            shutil.copytree(work / "tensorboard", folder / "tensorboard", dirs_exist_ok=True)
        replace_file(folder / "checkpoint.json", json.dumps(document, indent=2) + "\n")
    console.say(f"checkpoint: {checkpoint}")
    console.say(f"next: name it in a study, `{{name: {spec.name}, {kind}: {options.spec}}}`")
