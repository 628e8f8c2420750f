"""Whether Optuna's storage holds the trials of ``trials.jsonl`` and no others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna.trial import FrozenTrial, TrialState

from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError, StudyError
from safemerge.files import disk_errors
from safemerge.records import TrialRecord
from safemerge.search.flight import FlightFile
from safemerge.search.known import REFERENCE, is_reference_of
from safemerge.search.recovery import FIXED, NUMBER, RETRY_OF, START, sampled_records
from safemerge.search.space import SPACE_PARAMETER, parameter_name, settled, space_by_name
from safemerge.search.storage import (
    close_study,
    open_study,
    set_aside,
    storage_errors,
    storage_path,
)

if TYPE_CHECKING:
    import optuna

_Point = tuple[str, dict[str, Any]]
"""A space's name and the values drawn in it, by dotted path."""


class OpenedStudy(NamedTuple):
    """Optuna's study, in agreement with the records."""

    study: optuna.Study
    rebuilt: str | None
    """If the storage was begun anew: why, and where the old one is kept, in one line."""


def open_agreeing_study(
    spec: StudySpec, folder: Path, records: Sequence[TrialRecord]
) -> OpenedStudy:
    """Open Optuna's study; one with newer, other or foreign trials is set aside and begun anew.

    Args:
        spec: The study.
        folder: The run's folder, held by the caller.
        records: Every finished trial of the run.

    Returns:
        The study; what it lacks of the records is for `Recovery` to add.

    Raises:
        StudyError: If the storage's file is damaged.
    """
    path = storage_path(spec, folder)
    study = open_study(spec, folder)
    if spec.storage == "memory":
        notice = None
        for other in () if FlightFile(folder).path.exists() else _with_files(spec, folder):
            # Of an earlier version: what was in flight is known there alone.
            live = open_agreeing_study(other, folder, records)
            study.add_trials(live.study.get_trials(deepcopy=False))
            close_study(live.study)
            notice = live.rebuilt
        return OpenedStudy(study, notice)
    try:
        with storage_errors(path):
            found = disagreement(spec, study, records)
    except StudyError:
        close_study(study)
        raise
    if found is None:
        return OpenedStudy(study, None)
    close_study(study)
    with disk_errors(folder):
        kept = set_aside(path)
    notice = f"{path.name} {found}: rebuilt from trials.jsonl; the old file is kept as {kept.name}"
    return OpenedStudy(open_study(spec, folder), notice)


def _with_files(spec: StudySpec, folder: Path) -> list[StudySpec]:
    """Return the study with the storage whose file was written last; [] if there is none."""
    kinds = [spec.model_copy(update={"storage": kind}) for kind in ("sqlite", "journal")]
    there = [item for item in kinds if storage_path(item, folder).is_file()]
    return sorted(there, key=lambda item: storage_path(item, folder).stat().st_mtime)[-1:]


def disagreement(
    spec: StudySpec, study: optuna.Study, records: Sequence[TrialRecord]
) -> str | None:
    """Say what Optuna's storage holds that no killed driver of this run can have left there.

    A record is written before Optuna hears that its trial is finished, so a finished trial without
    a record, or unlike it, is of another run or of another time. Trials that run or wait may be
    without one.

    Args:
        spec: The study.
        study: Optuna's side of it.
        records: Every finished trial of the run.

    Returns:
        What follows the storage's name in a message; None if it agrees.
    """
    if [item.name.lower() for item in study.directions] != [
        item.direction for item in spec.objectives
    ]:
        return "is of other objectives"
    by_number = {record.number: record for record in sampled_records(records)}
    others = {item.number: item for item in records if item.number not in by_number}
    seen: set[int] = set()
    for trial in study.get_trials(deepcopy=False):
        if REFERENCE in trial.user_attrs:
            if not is_reference_of(spec, trial, others.get(trial.user_attrs[REFERENCE])):
                return f"holds a reference point that is not of this run ({_shown(trial)})"
            continue
        number = trial.user_attrs.get(NUMBER)
        if number is None:
            if not _may_lack_a_number(spec, trial, by_number):
                return f"holds a trial that is not of this run ({_shown(trial)})"
            continue
        if number in seen or number in others:
            return f"holds another trial {number}"
        seen.add(number)
        record, point = by_number.get(number), _point(spec, trial.params)
        if record is None:
            if trial.state.is_finished():
                return f"holds trial {number}, which trials.jsonl lacks"
            if point is None:
                return f"holds a trial {number} of other search spaces"
        elif point != (record.space, record.params) or not _same_end(spec, trial, record):
            return f"holds another trial {number} than trials.jsonl"
    return None


def _may_lack_a_number(
    spec: StudySpec, trial: FrozenTrial, by_number: Mapping[int, TrialRecord]
) -> bool:
    """Whether a trial without a number is queued, or ended while it was being asked for."""
    attributes = trial.user_attrs
    if RETRY_OF in attributes:
        record = by_number.get(attributes[RETRY_OF])
        point = _point(spec, trial.system_attrs.get(FIXED, {}))
        return record is not None and point == (record.space, record.params)
    if START in attributes:
        return attributes[START] in {start.name for start in spec.started}
    if trial.state == TrialState.WAITING:
        return _point(spec, trial.system_attrs.get(FIXED, {})) is not None
    return trial.state in (TrialState.RUNNING, TrialState.FAIL)


def _same_end(spec: StudySpec, trial: FrozenTrial, record: TrialRecord) -> bool:
    """Whether a trial ended as its record has it, or has not heard yet that it ended."""
    if not trial.state.is_finished():
        return True
    if trial.state.name != record.state:
        return False
    if record.state != "COMPLETE":
        return True
    values = [record.objectives[item.metric] for item in spec.objectives]
    return trial.values == values and dict(trial.constraints) == record.violations


def _point(spec: StudySpec, params: Mapping[str, Any]) -> _Point | None:
    """What Optuna's parameters stand for; None if they are of no space of the study."""
    try:
        space = space_by_name(spec, str(params.get(SPACE_PARAMETER, spec.spaces[0].name)))
    except ConfigError:
        return None
    named = {parameter_name(space, path): path for path in space.vary}
    drawn = {key: value for key, value in params.items() if key != SPACE_PARAMETER}
    if set(drawn) != set(named):
        return None
    values = {path: drawn[name] for name, path in named.items()}
    return space.name, settled(space, values)


def _shown(trial: FrozenTrial) -> str:
    return f"{trial.state.name.lower()}, with {len(trial.params)} values"
