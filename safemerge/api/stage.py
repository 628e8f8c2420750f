"""Training one stage: an alignment, or a fine-tuning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from safemerge.api.declared import StrPath, declared, save_yaml
from safemerge.api.folder import check_disk, run_folder
from safemerge.api.progress import Progress, Say
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.schema import model_of
from safemerge.files import disk_errors, replace_file

if TYPE_CHECKING:
    from safemerge.config.training import AlignSpec, FinetuneSpec


class TrainedCheckpoint(NamedTuple):
    """A checkpoint that a training stage made."""

    name: str
    """Name of the stage."""
    path: Path
    """Its folder, in the cache, where studies that name the same stage find it."""
    digest: str
    """Fingerprint of its weights."""
    file: Path
    """The training file; a study names it as ``{name: NAME, align: FILE}``, or ``finetune``."""
    folder: Path
    """The run's folder: ``metrics.jsonl``, one line a step, and TensorBoard's files."""


def align(
    stage: StrPath | Mapping[str, Any],
    *,
    results: StrPath = "results",
    resume: bool = False,
    progress: Say | None = None,
) -> TrainedCheckpoint:
    """Train an alignment stage on Ray Train, or find it in the cache.

    Args:
        stage: A file (``safemerge schema align``), or its keys as a mapping.
        results: Folder of run folders.
        resume: Continue unfinished training from its last checkpoint, else begin it anew.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Raises:
        UserError: If the stage, its data or its base is wrong.
        TrainingError: If training failed.
    """
    return _train(stage, "align", results=results, resume=resume, progress=progress)


def finetune(
    stage: StrPath | Mapping[str, Any],
    *,
    results: StrPath = "results",
    resume: bool = False,
    progress: Say | None = None,
) -> TrainedCheckpoint:
    """Fine-tune an expert on Ray Train, or find it in the cache.

    Args:
        stage: A file (``safemerge schema finetune``), or its keys as a mapping.
        results: Folder of run folders.
        resume: Continue unfinished training from its last checkpoint, else begin it anew.
        progress: Called with lines of progress, e.g. `print`; the log if left out.

    Raises:
        UserError: If the stage, its data or its base is wrong.
        TrainingError: If training failed.
    """
    return _train(stage, "finetune", results=results, resume=resume, progress=progress)


def _train(
    stage: StrPath | Mapping[str, Any],
    kind: Literal["align", "finetune"],
    *,
    results: StrPath,
    resume: bool,
    progress: Say | None,
) -> TrainedCheckpoint:
    model: Any = model_of(kind)
    spec: AlignSpec | FinetuneSpec = declared(stage, model, kind=kind)

    from safemerge.distributed.ingredient import Ingredients

    folder = run_folder(results, spec.name)
    check_disk(folder)
    if isinstance(stage, Mapping):
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file = save_yaml(spec.resolved(), folder / f"{kind}.yaml")
    else:
        file = Path(stage)
    reference = CheckpointRef.model_validate({"name": spec.name, kind: str(file.resolve())})
    lines = Progress(progress)
    ingredients = Ingredients(say=lines.say, on_step=lines.training_step, resume=resume)
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
    return TrainedCheckpoint(spec.name, checkpoint, str(resolved.digest), file, folder)
