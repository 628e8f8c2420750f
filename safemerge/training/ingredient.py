"""Trained checkpoints by content: the same base, data, settings and seed are trained once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from safemerge.cache import cache_dir
from safemerge.config.alignment import AlignSpec
from safemerge.config.base import digest
from safemerge.config.training import FinetuneSpec
from safemerge.errors import CheckpointChangedError
from safemerge.training.batch import Mixture
from safemerge.weights.checkpoint import read_json
from safemerge.weights.fingerprint import fingerprint

RECIPE_VERSION = 1
"""Raised when a change of the training code changes its results."""

MARKER = "safemerge_training.json"
"""File that a finished ingredient carries; a folder without it is unfinished."""

FINGERPRINT = "fingerprint"
"""Key in the marker: fingerprint of what was written."""

MEASURED = "measured"
"""Key in the marker: what the stage measured and went by (`safemerge.training.measured`)."""


def ingredient_digest(
    spec: FinetuneSpec | AlignSpec, *, base_fingerprint: str, mixture: Mixture
) -> str:
    """Return the digest of everything a trained checkpoint depends on.

    Args:
        spec: The stage; what counts of it is marked on its fields.
        base_fingerprint: Fingerprint of the base's weights.
        mixture: The tokenised data; what is only measured, not trained on, does not count.
    """
    settings = spec.counted()
    if spec.adapter is not None:
        settings["adapter"] = fingerprint(spec.adapter)
    content = hashlib.sha256()
    _add_rows(content, mixture)
    if mixture.second is not None:
        content.update(b"second")
        _add_rows(content, mixture.second)
    if mixture.asked:
        content.update(json.dumps(["until", mixture.asked]).encode())
    return digest(
        {
            "version": RECIPE_VERSION,
            "base": base_fingerprint,
            "settings": settings,
            "data": content.hexdigest(),
        }
    )


def _add_rows(content: hashlib._Hash, mixture: Mixture) -> None:
    for weight, rows in zip(mixture.weights, mixture.sets, strict=True):
        content.update(f"{weight!r}".encode())
        for row in rows:
            content.update(json.dumps([row.ids, row.num_prompt]).encode())


def ingredient_folder(name: str, ingredient: str) -> Path:
    """Return the cache folder of an ingredient, whether it exists or not."""
    return cache_dir() / "ingredients" / f"{name}-{ingredient}"


def is_finished(folder: Path) -> bool:
    """Tell whether an ingredient is complete.

    Raises:
        CheckpointChangedError: If its weights are no longer those that training wrote.
    """
    if not (folder / MARKER).is_file():
        return False
    check_kept(folder, MARKER)
    return True


def check_kept(folder: Path, marker: str) -> None:
    """Check that a folder of the cache holds the weights that were put there.

    Args:
        folder: A checkpoint or an adapter.
        marker: Name of the JSON file in it that tells its fingerprint; one without it is of an
            earlier version and says nothing.

    Raises:
        CheckpointChangedError: If the weights are others.
    """
    kept = read_json(folder / marker).get(FINGERPRINT)
    found = kept if kept is None else fingerprint(folder)
    if found != kept:
        raise CheckpointChangedError(
            f"{folder}: must hold the weights that were put there, of fingerprint {kept}; got "
            f"{found}: they changed since. Remove the folder, and it is made again."
        )
