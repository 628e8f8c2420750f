"""What the references of a recipe lead to on this machine."""

from pathlib import Path

from safemerge.config.checkpoint import CheckpointRef
from safemerge.errors import CheckpointMismatchError, MergeError
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.statistics import ModelStatistics


def model_path(where: str, ref: CheckpointRef) -> Path:
    """Return the folder of a model.

    Raises:
        MergeError: If the reference has no path yet.
    """
    if ref.path is None:
        raise MergeError(
            f"{where}, model '{ref.name}': must be a folder by now; got a reference without "
            f"path. Resolve package, align and finetune references first."
        )
    return Path(ref.path)


def open_statistics(
    where: str, ref: CheckpointRef, base: Checkpoint, *, check: bool
) -> ModelStatistics:
    """Open the statistics of a model, and compare digests.

    Args:
        where: Place named first in messages.
        ref: The model, with statistics.
        base: The open base, whose tensors they must fit.
        check: Whether to compare fingerprint, names, shapes and values.

    Raises:
        CheckpointError: If they cannot be read, or hold no sound values.
        CheckpointMismatchError: If they are of another model, or others than the recipe's.
        MergeError: If they are not gathered yet.
    """
    assert ref.statistics is not None, "asked only of models with statistics"
    if ref.statistics.path is None:
        raise MergeError(
            f"{where}: statistics must be a folder by now; got '{ref.statistics.gather}'. Gather "
            f"them first."
        )
    found = ModelStatistics(ref.statistics.path)
    if ref.statistics.digest not in (None, found.digest):
        raise CheckpointMismatchError(
            f"{where}: statistics must have the recipe's digest, {ref.statistics.digest}; got "
            f"{found.digest} in '{found.folder}'. Use those the recipe was made with."
        )
    if check:
        of = fingerprint(model_path(where, ref))
        if found.model != of:
            raise CheckpointMismatchError(
                f"{where}: statistics must be of this model, {of}; got some of {found.model} in "
                f"'{found.folder}'. Gather them of this model."
            )
        found.check(base, found.quantities, where)
    return found
