"""Training one stage: an alignment, or a fine-tuning."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from safemerge.api.declared import StrPath, declared, save_yaml
from safemerge.api.progress import Progress, Say
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.schema import model_of
from safemerge.errors import UserError
from safemerge.files import disk_errors
from safemerge.run_folder import RunFolder

if TYPE_CHECKING:
    from safemerge.config.alignment import AlignSpec
    from safemerge.config.training import FinetuneSpec


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
    restart: bool = False,
    progress: Say | None = None,
    again: str = "safemerge.align(...)",
) -> TrainedCheckpoint:
    """Train an alignment stage on Ray Train, or find it in the cache.

    Args:
        stage: A file (``safemerge schema align``), or its keys as a mapping.
        results: Folder of run folders.
        resume: As if left out: unfinished training is continued from its last checkpoint.
        restart: Drop unfinished training and begin anew.
        progress: Called with lines of progress, e.g. `print`; the log if left out.
        again: How the stage is continued, for messages.

    Raises:
        UserError: If the stage, its data or its base is wrong.
        TrainingError: If training failed.
    """
    _refuse_both(resume, restart)
    return _train(stage, "align", results=results, restart=restart, progress=progress, again=again)


def finetune(
    stage: StrPath | Mapping[str, Any],
    *,
    results: StrPath = "results",
    resume: bool = False,
    restart: bool = False,
    progress: Say | None = None,
    again: str = "safemerge.finetune(...)",
) -> TrainedCheckpoint:
    """Fine-tune an expert on Ray Train, or find it in the cache.

    Args:
        stage: A file (``safemerge schema finetune``), or its keys as a mapping.
        results: Folder of run folders.
        resume: As if left out: unfinished training is continued from its last checkpoint.
        restart: Drop unfinished training and begin anew.
        progress: Called with lines of progress, e.g. `print`; the log if left out.
        again: How the stage is continued, for messages.

    Raises:
        UserError: If the stage, its data or its base is wrong.
        TrainingError: If training failed.
    """
    _refuse_both(resume, restart)
    return _train(
        stage, "finetune", results=results, restart=restart, progress=progress, again=again
    )


def _refuse_both(resume: bool, restart: bool) -> None:
    if resume and restart:
        raise UserError(
            "training: resume (--resume) continues from the last checkpoint, restart (--restart) "
            "drops it; got both. Drop either."
        )


def _train(
    stage: StrPath | Mapping[str, Any],
    kind: Literal["align", "finetune"],
    *,
    results: StrPath,
    restart: bool,
    progress: Say | None,
    again: str,
) -> TrainedCheckpoint:
    model: Any = model_of(kind)
    spec: AlignSpec | FinetuneSpec = declared(stage, model, kind=kind)

    from safemerge.distributed.ingredient import Ingredients
    from safemerge.training.log import EVENTS_FOLDER, LOG_FILE

    store = RunFolder.under(results, spec.name)
    folder = store.folder
    store.check_disk()
    if isinstance(stage, Mapping):
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file = save_yaml(spec.resolved(), folder / f"{kind}.yaml")
    else:
        file = Path(stage)
    reference = CheckpointRef.model_validate({"name": spec.name, kind: str(file.resolve())})
    lines = Progress(progress)
    ingredients = Ingredients(say=lines.say, on_step=lines.training_step, restart=restart)
    try:
        resolved = ingredients.resolve([reference])[spec.name]
    except KeyboardInterrupt:
        lines.say(f"interrupted; checkpoints are kept. Resume: {again}")
        raise
    checkpoint = Path(str(resolved.path))
    work = checkpoint.with_name(checkpoint.name + ".work")
    if (work / LOG_FILE).exists():
        store.write(LOG_FILE, (work / LOG_FILE).read_bytes())
    if (work / EVENTS_FOLDER).exists():
        with disk_errors(folder):
            shutil.copytree(work / EVENTS_FOLDER, folder / EVENTS_FOLDER, dirs_exist_ok=True)
    store.write_json("checkpoint.json", {"path": str(checkpoint), "digest": resolved.digest})
    return TrainedCheckpoint(spec.name, checkpoint, str(resolved.digest), file, folder)
