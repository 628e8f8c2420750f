"""Optuna's study in a run's folder, its sampler, and its noise turned off."""

from __future__ import annotations

import importlib.util
import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, NSGAIIISampler, NSGAIISampler, RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.exc import SQLAlchemyError

from safemerge.config.sampler import GIVEN, SamplerSpec
from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError, PreflightError, StudyError
from safemerge.files import disk_errors, free_name, restore_last_line
from safemerge.search.bayesian_sampler import BayesianSampler
from safemerge.search.known import num_expressions
from safemerge.search.qmc_sampler import DeclaredQMCSampler
from safemerge.search.space import encoding
from safemerge.search.tpe_sampler import BoundedTPESampler

_FILE = {"memory": "study.db", "sqlite": "study.db", "journal": "study.journal"}
_LOCK_TIMEOUT_S = 60
_MAX_PATTERNS = 100
"""Combinations of a space and its choices that the Bayesian sampler is taken for, unless named: it
looks at each one for every recipe."""


def storage_path(spec: StudySpec, folder: Path) -> Path:
    """Return the file of Optuna's storage: ``study.db`` or ``study.journal``.

    With the study in memory it is written for the dashboard alone.
    """
    return folder / _FILE[spec.storage]


def open_study(spec: StudySpec, folder: Path) -> optuna.Study:
    """Open Optuna's study in a run's folder, creating it if need be.

    The caller holds the run (`RunStore.locked`), so a journal's lock file or torn last line
    can only be left over from a killed process, and is cleared away.

    Args:
        spec: The study.
        folder: The run's folder.

    Returns:
        The study, with Optuna's default sampler; see `make_sampler`.

    Raises:
        StudyError: If the file is damaged. Deleting it is safe: `SearchStudy` rebuilds it
            from ``trials.jsonl``.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # NOTE: the journal's lock is a link to this path, which must hold from any folder.
    path = storage_path(spec, folder.resolve())
    with storage_errors(path):
        return create_named_study(spec, _storage(spec, path))


def create_named_study(spec: StudySpec, storage: BaseStorage) -> optuna.Study:
    """Create a study's counterpart in a storage of Optuna's, or find it there."""
    study = optuna.create_study(
        storage=storage,
        study_name=spec.name,
        directions=[objective.direction for objective in spec.objectives],
        load_if_exists=True,
    )
    names = [objective.metric for objective in spec.objectives]
    # NOTE: one of other objectives is set aside by who opened it.
    if study.metric_names != names and len(study.directions) == len(names):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*set_metric_names", ExperimentalWarning)
            study.set_metric_names(names)
    return study


def set_aside(path: Path) -> Path:
    """Rename a storage's file, and what SQLite keeps beside it.

    Args:
        path: See `storage_path`; nothing has it open.

    Returns:
        What it is called now.

    Raises:
        OSError: As the system reports it.
    """
    kept = free_name(path)
    path.rename(kept)
    for ending in ("-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(kept.with_name(kept.name + ending))
    return kept


def close_study(study: optuna.Study) -> None:
    """Close the connections of Optuna's storage."""
    storage = study._storage
    backend = getattr(storage, "_backend", storage)
    if isinstance(backend, RDBStorage):
        backend.remove_session()
        backend.engine.dispose()


class ChosenSampler(NamedTuple):
    """A study whose sampler is settled."""

    spec: StudySpec
    notice: str | None
    """What was chosen for ``auto`` and why, in a line; None if the study or its run says."""


def with_sampler(spec: StudySpec, stored: StudySpec | None = None) -> ChosenSampler:
    """Settle which sampler ``auto`` is.

    Args:
        spec: The study.
        stored: The study of the run that is continued, if it is.

    Returns:
        The study with the run's sampler; a new one's is the Bayesian one where it can be used.

    Raises:
        ConfigError: If the study asks for the Bayesian sampler, and BoTorch is not installed; or
            for the end by its expected gain, and the sampler is another.
    """
    if spec.sampler.use is not None:
        return ChosenSampler(spec, None)
    can_model = importlib.util.find_spec("botorch") is not None
    name, notice = spec.sampler.name, None
    if name == "auto" and stored is not None and stored.sampler.name != "auto":
        name = stored.sampler.name
    elif name == "auto":
        name, notice = "tpe", "sampler: tpe, for botorch is not installed"
        if can_model:
            choices = encoding(spec).num_patterns
            notice = f"sampler: tpe, for there are {choices} combinations of choices"
            if choices <= _MAX_PATTERNS:
                name, notice = "bayesian", "sampler: bayesian (qLogNEHVI)"
    if name == "bayesian" and not can_model:
        raise ConfigError(
            "sampler.name 'bayesian': needs botorch; got none installed. Install it, or take tpe "
            "in a new run."
        )
    if name != "bayesian" and spec.budget is not None and spec.budget.expected_gain is not None:
        raise ConfigError(
            f"budget.expected_gain: needs the Bayesian sampler, which alone says what it expects; "
            f"got {name}. Take 'hypervolume_plateau' instead, or name bayesian in a new run."
        )
    sampler = spec.sampler.model_copy(update={"name": name})
    return ChosenSampler(spec.model_copy(update={"sampler": sampler}), notice)


def make_sampler(spec: StudySpec, *, num_existing: int) -> BaseSampler:
    """Build the study's sampler.

    Args:
        spec: The study; its seed is combined with `num_existing`.
        num_existing: Trials that Optuna holds already. A resumed study so draws other random
            numbers than it began with, and the same ones each time it is resumed there.

    Returns:
        TPE (multivariate, grouped by space, with a constant liar for parallel asks), NSGA-II
        or NSGA-III (populations of ``startup``, at least 2), random sampling, a Sobol sequence,
        Bayesian optimisation, or what the study names.

    Raises:
        ConfigError: If the sampler that the study names cannot be made, or is none.
    """
    words = np.random.SeedSequence((spec.seed, num_existing)).generate_state(1)
    seed = int(words[0])
    startup = spec.sampler.startup
    # Samplers of Optuna's form count the reference points that they are given as trials.
    num_startup = startup + num_expressions(spec)
    if spec.sampler.use is not None:
        return _added_sampler(spec.sampler, seed=seed, startup=num_startup)
    spec = with_sampler(spec).spec
    if spec.sampler.name == "random":
        return RandomSampler(seed=seed)
    if spec.sampler.name == "qmc":
        return DeclaredQMCSampler(encoding(spec), seed=spec.seed)
    if spec.sampler.name == "bayesian":
        objectives = {item.metric: item.reference for item in spec.objectives}
        return BayesianSampler(encoding(spec), objectives, startup=startup, seed=seed)
    if spec.sampler.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, startup))
    if spec.sampler.name == "nsga3":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return NSGAIIISampler(seed=seed, population_size=max(2, startup))
    cube = encoding(spec)
    chooser = {} if cube.chooser is None else {cube.chooser: cube.choice}
    return BoundedTPESampler(cube.spaces, chooser=chooser, startup=num_startup, seed=seed)


def violations(trial: optuna.trial.FrozenTrial) -> Sequence[float]:
    """Return how far a trial is beyond each budget; above 0 is broken, none where it failed."""
    return tuple(trial.constraints.values())


def _added_sampler(spec: SamplerSpec, *, seed: int, startup: int) -> BaseSampler:
    made_by = spec.loaded()
    ours = {
        "seed": seed,
        "n_startup_trials": startup,
        "constraints_func": violations,
    }
    takes = inspect.signature(made_by).parameters
    given = {name: ours[name] for name in GIVEN if name in takes}
    try:
        with warnings.catch_warnings():
            # Optuna's own classes prefer constraints that are set on trials, as these are too.
            warnings.simplefilter("ignore")
            sampler = made_by(**given, **spec.arguments)
    except Exception as error:
        raise ConfigError(
            f"sampler.use '{spec.use}': must be made with arguments {spec.arguments}; got "
            f"{type(error).__name__}: {error}."
        ) from error
    if not isinstance(sampler, BaseSampler):
        raise ConfigError(
            f"sampler.use '{spec.use}': must be an optuna.samplers.BaseSampler; got "
            f"{type(sampler).__name__}."
        )
    return sampler


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a damaged or unwritable Optuna storage into a message for the user.

    Args:
        path: The storage's file.

    Yields:
        Nothing.

    Raises:
        PreflightError: If the disk is full.
        StudyError: If Optuna could not read or write it.
    """
    try:
        with disk_errors(path.parent):
            yield
    except (StorageInternalError, SQLAlchemyError) as error:
        text = str(error.__cause__ or error)
        if "disk is full" in text:
            raise PreflightError(
                f"{path.parent}: the disk is full; got no room for {path.name}. "
                "Free space, then resume."
            ) from error
        detail = text.splitlines()[0]
        raise StudyError(
            f"{path}: Optuna's storage cannot be used; got {detail!r}. Free disk space if it is "
            "full; if the file is damaged, delete it (trials.jsonl rebuilds it) and resume."
        ) from error


def _storage(spec: StudySpec, path: Path) -> BaseStorage:
    if spec.storage == "memory":
        return InMemoryStorage()
    if spec.storage == "sqlite":
        return RDBStorage(
            f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": _LOCK_TIMEOUT_S}}
        )
    with suppress(FileNotFoundError):
        path.with_name(f"{path.name}.lock").unlink()
    restore_last_line(path, is_whole=lambda _: False)
    return JournalStorage(JournalFileBackend(str(path)))
