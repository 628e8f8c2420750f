"""Running one training file as a command: train, or find it cached; leave a run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.config.checkpoint import CheckpointRef

if TYPE_CHECKING:
    import argparse


def run_stage(options: argparse.Namespace, kind: str) -> None:
    """Train a stage and link its checkpoint and metrics into a run folder.

    The checkpoint itself lives in the cache, by content digest, where studies find it.
    """
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.ingredient import Ingredients, load_training_spec

    console = Console()
    spec = load_training_spec(options.spec, kind)
    reference = CheckpointRef.model_validate(
        {"name": spec.name, kind: str(Path(options.spec).resolve())}
    )
    ingredients = Ingredients(
        say=console.say, on_step=console.training_step, resume=options.resume
    )
    with ray_cluster():
        resolved = ingredients.resolve([reference])[spec.name]
    folder = Path(options.results) / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(str(resolved.path))
    work = checkpoint.with_name(checkpoint.name + ".work")
    if (work / "metrics.jsonl").exists():
        shutil.copyfile(work / "metrics.jsonl", folder / "metrics.jsonl")
    if (work / "tensorboard").exists():
        shutil.copytree(work / "tensorboard", folder / "tensorboard", dirs_exist_ok=True)
    (folder / "checkpoint.json").write_text(
        json.dumps({"path": str(checkpoint), "digest": resolved.digest}, indent=2) + "\n",
        encoding="utf-8",
    )
    console.say(f"checkpoint: {checkpoint}")
    console.say(f"next: name it in a study, `{{name: {spec.name}, {kind}: {options.spec}}}`")
