"""Everything that a study reads, as digests, once its data and judges are at hand."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safemerge.config.base import DIGEST_LENGTH
from safemerge.config.inputs import AskedRows
from safemerge.config.judge import ModelJudge
from safemerge.config.study import StudySpec
from safemerge.data.asked import asked_rows, rows_digests, rung_rows, task_definitions
from safemerge.data.suite import Suites
from safemerge.errors import CheckpointError
from safemerge.inputs import file_inputs
from safemerge.weights.fingerprint import fingerprint


def with_inputs(spec: StudySpec, suites: Suites) -> tuple[StudySpec, AskedRows]:
    """Return a resolved study with its inputs, and the rows that it asks.

    Args:
        spec: The study, its checkpoints in folders.
        suites: Its suites.

    Raises:
        DataError: If the rung cannot be read.
    """
    rows = {**asked_rows(suites), **(rung_rows(spec.rung) if spec.rung is not None else {})}
    judges = {
        judge.name: found
        for suite in spec.suites
        for judge in suite.judges
        if isinstance(judge, ModelJudge) and (found := judge_digest(judge)) is not None
    }
    inputs = file_inputs(spec).model_copy(
        update={
            "rows": rows_digests(rows),
            "tasks": task_definitions(suites),
            "judges": judges,
        }
    )
    return spec.model_copy(update={"inputs": inputs}), rows


def judge_digest(judge: ModelJudge) -> str | None:
    """Return the fingerprint of a judge's weights, from its folder or the hub's cache.

    Args:
        judge: A declared judge.

    Returns:
        The fingerprint (pickled weights by their bytes); None if the weights are not on disk yet.
    """
    folder = Path(judge.path) if judge.path is not None else _snapshot(str(judge.hub))
    if folder is None or not folder.is_dir():
        return None
    try:
        return fingerprint(folder)
    except CheckpointError:
        content = hashlib.sha256()
        for file in sorted(folder.glob("*.bin")):
            with file.open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
        return content.hexdigest()[:DIGEST_LENGTH]


def _snapshot(repository: str) -> Path | None:
    """The folder in the hub's cache that a repository is loaded from, if it is there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
