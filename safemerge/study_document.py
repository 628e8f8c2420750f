"""What ``study.json`` holds, and whether a study that is given is the one it holds."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from safemerge.config.base import StrictModel, digest
from safemerge.config.identity import first_difference, study_identity
from safemerge.config.inputs import AskedRows, InputChange, StudyInputs, input_changes
from safemerge.config.study import StudySpec
from safemerge.errors import ChangedRunError
from safemerge.inputs import file_inputs
from safemerge.provenance import Provenance, current_provenance

STORE_FORMAT = 1
"""Version of the folder's layout; another one is refused, never guessed at."""

START_AFRESH = "--new-data (the run so far is kept beside) or a new study name"
"""What to do about a run that cannot be resumed."""


class StudyDocument(StrictModel):
    """What ``study.json`` holds."""

    format: int
    """Layout version of the folder."""
    study: str
    """Name of the study."""
    digest: str
    """Digest of everything that makes two runs the same study: `study_identity` and `inputs`."""
    config: StudySpec
    """The resolved study as it was when the folder was created."""
    provenance: Provenance
    inputs: StudyInputs | None = Field(default=None, exclude_if=lambda given: given is None)
    """What the run was made with; None of a run by a version that did not record it."""


def new_document(spec: StudySpec) -> StudyDocument:
    """Return the document of a study that begins now.

    Args:
        spec: The study; without its inputs, the files that it names are digested here.
    """
    inputs = spec.inputs or file_inputs(spec)
    return StudyDocument(
        format=STORE_FORMAT,
        study=spec.name,
        digest=digest({**study_identity(spec), "inputs": inputs.resolved()}),
        config=spec.model_copy(update={"inputs": None}),
        provenance=current_provenance(),
        inputs=inputs,
    )


def check_same_study(
    stored: StudyDocument,
    spec: StudySpec,
    *,
    rows_before: AskedRows | None,
    rows: AskedRows | None,
    where: Path,
) -> None:
    """Refuse to continue a run with another study, or with other inputs.

    Args:
        stored: Of the run.
        spec: The study that the user gives now.
        rows_before: The rows that the run asks, if they are stored.
        rows: The rows that the study asks now, if they are loaded.
        where: The run's folder, for messages.

    Raises:
        ChangedRunError: If the study differs (names the first path and both values), or what it
            reads has changed, or the run is of an earlier version, which did not record that.
    """
    before = study_identity(stored.config, other=spec)
    now = study_identity(spec, other=stored.config)
    difference = first_difference(before, now)
    if difference is not None:
        path, was, given = difference
        raise ChangedRunError(
            f"study '{stored.study}': digest of the stored config differs "
            f"({digest(before)[:4]} vs {digest(now)[:4]}) at {path}: {was} vs {given}. "
            "Use a new study name."
        )
    if stored.inputs is None:
        raise ChangedRunError(
            f"{where}: must say by digests what the run was made with; got a run of safemerge "
            f"{stored.provenance.safemerge}, which did not record it. Its report and export still "
            f"work; new trials need {START_AFRESH}."
        )
    given_now = spec.inputs or file_inputs(spec)
    changes = input_changes(stored.inputs, given_now, rows_before=rows_before, rows=rows)
    if changes:
        advice = f"Put back what changed, or take {START_AFRESH}"
        raise changed_inputs(stored.study, changes, advice)


def changed_inputs(study: str, changes: list[InputChange], advice: str) -> ChangedRunError:
    """Return the error that names every changed input."""
    text = ", ".join(map(str, changes))
    return ChangedRunError(f"study '{study}': inputs must be the run's; got {text}. {advice}.")
