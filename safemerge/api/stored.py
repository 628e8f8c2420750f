"""Whether what a stored run was made with is still what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.config.identity import first_difference, study_identity
from safemerge.config.inputs import SCORING, StudyInputs, input_changes
from safemerge.errors import ChangedRunError
from safemerge.inputs import file_inputs
from safemerge.run_folder import RunFolder
from safemerge.store import RunStore
from safemerge.study_document import StudyDocument, changed_inputs

if TYPE_CHECKING:
    from safemerge.api.progress import Progress
    from safemerge.config.inputs import InputChange
    from safemerge.config.study import StudySpec


def check_stored(folder: Path, progress: Progress, *, as_stored: bool = False) -> None:
    """Refuse a stored run whose data or models are there and have changed.

    Nothing has to be there: what is gone, or was never recorded, is not compared. Another version
    of scoring is said and not refused, since stored scores stay what they are.

    Args:
        folder: The run's folder.
        progress: Where notices go.
        as_stored: Say what changed, and continue.

    Raises:
        StudyError: If the folder holds no run.
        ChangedRunError: If something changed; names all of it.
    """
    store = RunStore(folder)
    document = store.study()
    changes = stored_changes(store, document)
    if scoring := [item for item in changes if item.found == SCORING]:
        progress.say(
            f"note: scored by version {scoring[0].place} of scoring; new trials are not comparable"
        )
    changes = [item for item in changes if item.found != SCORING]
    if not changes:
        return
    if not as_stored:
        advice = "Put back what changed, or take the stored numbers as they are with --as-stored"
        raise changed_inputs(document.study, changes, advice)
    changed = ", ".join(map(str, changes))
    progress.say(f"note: since the run was made there is {changed}; numbers are as stored")


def stored_changes(
    store: RunStore, document: StudyDocument, spec: StudySpec | None = None
) -> list[InputChange]:
    """Return what of a run's inputs is there and has changed.

    A data file with other content is loaded, where the run's rows are known: it counts only if
    other rows are asked of it.

    Args:
        store: The run.
        document: Its ``study.json``.
        spec: Another study over the same suites, whose inputs are looked at; the run's own if
            left out.
    """
    spec = spec or document.config
    if document.inputs is None:
        return []
    # By files alone at first: most often nothing changed, and nothing has to be loaded.
    files = document.inputs.model_copy(update={"rows": {}, "tasks": {}})
    now = file_inputs(spec)
    changes = input_changes(files, now)
    if not document.inputs.rows or all(item.kind != "files" for item in changes):
        return changes
    found = _by_rows(store, spec, document.inputs, now)
    return changes if found is None else found


def _by_rows(
    store: RunStore, spec: StudySpec, before: StudyInputs, now: StudyInputs
) -> list[InputChange] | None:
    """The same with the data loaded; None if they cannot be."""
    from safemerge.data.asked import asked_rows, rows_digests, rung_rows, task_definitions
    from safemerge.data.suite import load_suites
    from safemerge.errors import UserError

    try:
        suites = load_suites(spec)
        rung = spec.rung
        rows = {**asked_rows(suites), **(rung_rows(rung) if rung is not None else {})}
    except UserError:
        return None
    loaded = {"rows": rows_digests(rows), "tasks": task_definitions(suites)}
    now = now.model_copy(update=loaded)
    return input_changes(before, now, rows_before=store.asked(), rows=rows)


def stored_study(folder: str, progress: Progress) -> StudySpec:
    """Return the study of a run, to ask its suites again.

    Args:
        folder: The run's folder.
        progress: Where notices go.

    Raises:
        StudyError: If the folder holds no run.
        ChangedRunError: If data, models or scoring are others by now; names all of it.
    """
    store = RunStore(folder)
    document = store.study()
    _refuse_changes(document, stored_changes(store, document))
    if document.inputs is None:
        progress.say(
            f"note: {folder} is of an earlier version and does not say what it was made with"
        )
    # What was trained for variants is none of the suites' business.
    return document.config.model_copy(update={"trained": [], "untrained": [], "started": []})


def check_recipe(file: Path, spec: StudySpec) -> None:
    """Refuse to score a run's recipe by its own study if that asks something else by now.

    Args:
        file: A recipe; one that is in no run's folder, or in another study's, passes.
        spec: The study whose suites are asked.

    Raises:
        ChangedRunError: If so; names what changed.
    """
    store = RunStore(file.resolve().parent.parent)
    if not store.exists or (document := store.study()).study != spec.name:
        return
    now, before = study_identity(spec)["suites"], study_identity(document.config)["suites"]
    difference = first_difference(before, now, "suites")
    if difference is not None:
        path, was, given = difference
        raise ChangedRunError(
            f"study '{spec.name}': suites must be those of the run that holds {file}; got "
            f"{path}: {was} in the run, {given} in the study. Name the run's folder instead of "
            "the study, or rename the study."
        )
    _refuse_changes(document, stored_changes(store, document, spec))


def _refuse_changes(document: StudyDocument, changes: list[InputChange]) -> None:
    if changes:
        advice = "Put back what changed, or rename the study: it asks something else now"
        raise changed_inputs(document.study, changes, advice)


def accept_records(folder: RunFolder, progress: Progress) -> None:
    """Take a run's records as they are now, and say so."""
    accepted = folder.accept_records()
    for path, kept in accepted.items():
        folder.log(f"{path.name} accepted as it is; the digests before are in {kept.name}")
        progress.say(f"{path}: taken as it is; the digests so far are kept as {kept}")
    if not accepted:
        progress.say(f"{folder.folder}: nothing to accept; every record is as it was written")
