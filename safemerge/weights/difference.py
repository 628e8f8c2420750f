"""Which tensors of an expert differ from its base: where its task vector is not zero."""

import torch

from safemerge.cache import read_entry, write_entry
from safemerge.weights.adapter import AdapterCheckpoint
from safemerge.weights.checkpoint import Checkpoint
from safemerge.weights.fingerprint import fingerprint


def changed_names(base: Checkpoint, expert: Checkpoint) -> frozenset[str]:
    """Return the names of the tensors in which an expert differs from the base.

    One pass over both checkpoints (over an adapter's own tensors), cached by fingerprint. Values
    are compared in float32.

    Args:
        base: Checkpoint that the task vector is measured from.
        expert: Checkpoint with the base's names and shapes.

    Returns:
        Names; empty for a task vector of zero.

    Raises:
        CheckpointChangedError: If a file changes meanwhile.
    """
    key = f"{fingerprint(expert.folder)}-from-{fingerprint(base.folder)}"
    cached = read_entry("changed", key)
    if cached is not None and isinstance(cached.get("names"), list):
        return frozenset(map(str, cached["names"]))
    names = base.distinct_names
    if isinstance(expert, AdapterCheckpoint):
        adapted = set(expert.adapted_names)
        names = tuple(name for name in names if name in adapted)
    changed = [
        name
        for name in names
        if not torch.equal(
            base.tensor(name).to(torch.float32), expert.tensor(name).to(torch.float32)
        )
    ]
    base.check_unchanged()
    expert.check_unchanged()
    write_entry("changed", key, {"names": changed})
    return frozenset(changed)
