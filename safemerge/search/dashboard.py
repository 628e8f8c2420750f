"""``study.db``: Optuna's study as a file, for optuna-dashboard; nothing is read from it.

Rows are inserted many at a time. Through Optuna's storage each finished trial takes some ten
statements, 40 ms; ten thousand of them would take minutes.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from safemerge.search.storage import close_study, create_named_study, set_aside

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from safemerge.config.study import StudySpec

logger = logging.getLogger(__name__)

EVERY_S = 30.0
"""Shortest time between two writes."""
_SHARE = 50
"""How often the time of a write must have passed until the next one: they take 2 % at most."""
_LOCK_TIMEOUT_S = 5


class Dashboard:
    """Copies a study in memory to a file: at intervals, and at the end.

    Args:
        spec: The study.
        path: The file. One that is no database, or of another study, is renamed.
        study: Optuna's study.
    """

    def __init__(self, spec: StudySpec, path: Path, study: optuna.Study) -> None:
        self._spec, self._path, self._study = spec, path, study
        self._file: optuna.Study | None = None
        self._changed, self._next = True, time.monotonic() + EVERY_S

    def note_change(self) -> None:
        """Write the file if the last time is long ago."""
        self._changed = True
        if time.monotonic() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the study as it is now; a file that cannot be written is left as it is."""
        began = time.monotonic()
        try:
            self._copy()
        except (StorageInternalError, SQLAlchemyError, OSError) as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            logger.warning("%s: could not be written for the dashboard: %s", self._path, reason)
        else:
            self._changed = False
        ended = time.monotonic()
        self._next = ended + max(EVERY_S, _SHARE * (ended - began))

    def close(self) -> None:
        """Write what has changed, and close the file."""
        if self._changed:
            self.write()
        if self._file is not None:
            close_study(self._file)
            self._file = None

    def _copy(self) -> None:
        file = self._file = self._file or self._opened()
        trials = self._study.get_trials(deepcopy=False)
        engine = _storage(file).engine
        with engine.begin() as connection:
            study_id = file._study_id
            trial, key = models.TrialModel.__table__, models.TrialModel.trial_id
            of_study = select(key).where(models.TrialModel.study_id == study_id)
            for model in _PARTS:
                connection.execute(
                    delete(model.__table__).where(model.__table__.c.trial_id.in_(of_study))
                )
            connection.execute(delete(trial).where(trial.c.study_id == study_id))
            for table, rows in _rows(trials, study_id):
                if rows:
                    connection.execute(insert(table), rows)

    def _opened(self) -> optuna.Study:
        if self._path.exists() and not self._is_ours():
            set_aside(self._path)
        return create_named_study(self._spec, _file_storage(self._path))

    def _is_ours(self) -> bool:
        try:
            storage = _file_storage(self._path)
            names = optuna.get_all_study_names(storage)
            if names not in ([], [self._spec.name]):
                return False
            return all(
                [way.name.lower() for way in found.directions]
                == [item.direction for item in self._spec.objectives]
                for found in storage.get_all_studies()
            )
        except (StorageInternalError, SQLAlchemyError, RuntimeError):
            return False


_PARTS: tuple[Any, ...] = (
    models.TrialValueModel,
    models.TrialParamModel,
    models.TrialUserAttributeModel,
    models.TrialSystemAttributeModel,
    models.TrialIntermediateValueModel,
    models.TrialHeartbeatModel,
)


def _rows(
    trials: Sequence[FrozenTrial], study_id: int
) -> Iterable[tuple[Any, list[dict[str, Any]]]]:
    """Yield each table with its rows."""
    shown = {}
    for trial in trials:
        for distribution in trial.distributions.values():
            if id(distribution) not in shown:
                shown[id(distribution)] = distribution_to_json(distribution)
    yield (
        models.TrialModel.__table__,
        [
            {
                "trial_id": trial.number + 1,
                "number": trial.number,
                "study_id": study_id,
                "state": trial.state,
                "datetime_start": _utc(trial.datetime_start),
                "datetime_complete": _utc(trial.datetime_complete),
            }
            for trial in trials
        ],
    )
    found: dict[Any, list[dict[str, Any]]] = {model: [] for model in _PARTS}
    for trial in trials:
        own = {"trial_id": trial.number + 1}
        for index, value in enumerate(trial.values or ()):
            stored, kind = models.TrialValueModel.value_to_stored_repr(value)
            found[models.TrialValueModel].append(
                {**own, "objective": index, "value": stored, "value_type": kind}
            )
        for name, distribution in trial.distributions.items():
            found[models.TrialParamModel].append(
                {
                    **own,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(trial.params[name]),
                    "distribution_json": shown[id(distribution)],
                }
            )
        for model, attributes in (
            (models.TrialUserAttributeModel, trial.user_attrs),
            (models.TrialSystemAttributeModel, trial.system_attrs),
        ):
            found[model] += [
                {**own, "key": key, "value_json": json.dumps(value)}
                for key, value in attributes.items()
            ]
    for model, rows in found.items():
        yield model.__table__, rows


def _utc(time_: datetime | None) -> datetime | None:
    """Optuna's local time as its file has it: UTC, without saying so."""
    return None if time_ is None else time_.astimezone(UTC).replace(tzinfo=None)


def _file_storage(path: Path) -> RDBStorage:
    # Without a pool no connection outlives its statement, also where one fails.
    options = {"connect_args": {"timeout": _LOCK_TIMEOUT_S}, "poolclass": NullPool}
    return RDBStorage(f"sqlite:///{path}", engine_kwargs=options)


def _storage(study: optuna.Study) -> RDBStorage:
    storage = study._storage
    backend = getattr(storage, "_backend", storage)
    assert isinstance(backend, RDBStorage)
    return backend
