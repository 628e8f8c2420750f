"""Ingredients made while a search continues: variants of experts, trained when they are wanted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import ray

from safemerge.config.checkpoint import CheckpointRef, Setting
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.config.variant import expert_settings
from safemerge.distributed.capacity import Room, find_room
from safemerge.distributed.ingredient import (
    Ingredients,
    future_folder,
    stage_file,
    training_plan,
)
from safemerge.distributed.statistics import gathered_files, load_statistics_spec
from safemerge.errors import ConfigError, SafemergeError, TrainingError, UserError
from safemerge.search.retrain import Place
from safemerge.search.study import SearchStudy
from safemerge.search.untrained import untrained_paths, wanted_paths
from safemerge.training.ingredient import is_finished

LOOK_S = 0.2
"""Seconds between looks while there is nothing to do but to train."""


class Delivery(NamedTuple):
    """What became of an ingredient that was wanted."""

    path: str
    """Folder that would have held it."""
    made: CheckpointRef | None
    """The trained checkpoint, with fingerprint and statistics; None if training failed."""
    error: str = ""
    """Why there is none."""
    final: bool = False
    """Whether it is tried no more."""


class Supply:
    """Trains variants on threads, each once, and tells what became of them.

    A context manager: once it is closed nothing new is started, and what is being trained is
    left to the end of the cluster; it continues from its checkpoint when it is wanted again.

    Args:
        make: Trains a declared checkpoint, for a folder, and returns it with path and
            fingerprint. A `UserError` ends the search: another try would not help.
        declared: Declared checkpoint by its folder.
        room: Where to train.
        num_retries: How often a stage that failed is tried again.
        num_there: How many variants exist already.
    """

    def __init__(
        self,
        make: Callable[[CheckpointRef, str], CheckpointRef],
        declared: Mapping[str, CheckpointRef],
        room: Room,
        *,
        num_retries: int = 1,
        num_there: int = 0,
    ) -> None:
        self._make = make
        self._declared = dict(declared)
        self.room = room
        self._num_retries = num_retries
        self._lock = threading.Condition()
        self._queue: deque[str] = deque()
        self._running: set[str] = set()
        self._delivered: list[Delivery] = []
        self._failed: dict[str, list[str]] = {}
        self._wrong: UserError | None = None
        self._num_made = num_there
        self._closed = False

    def declare(self, path: str, ref: CheckpointRef) -> None:
        """Tell what is trained when a folder is wanted."""
        with self._lock:
            self._declared.setdefault(path, ref)

    def want(self, path: str) -> None:
        """Ask for an ingredient; asking again while it is on its way changes nothing.

        Args:
            path: Its folder.
        """
        with self._lock:
            if path in self._queue or path in self._running:
                return
            failures = self._failed.get(path, [])
            if len(failures) > self._num_retries:
                self._delivered.append(Delivery(path, None, failures[-1], final=True))
                return
            self._queue.append(path)
            if self.room.beside:
                self._start()

    def delivered(self) -> list[Delivery]:
        """Return what has ended since the last call.

        Raises:
            UserError: If a training file or what it names is wrong by now, or the disk is full.
        """
        with self._lock:
            if self._wrong is not None:
                raise self._wrong
            found, self._delivered = self._delivered, []
            return found

    @property
    def waiting(self) -> bool:
        """Whether something is wanted that needs the evaluator's room."""
        with self._lock:
            return bool(self._queue) and not self.room.beside

    @property
    def exhausted(self) -> str | None:
        """Why nothing can be trained: two stages failed for good, no variant is there or due."""
        with self._lock:
            if self._num_made or self._running or self._queue:
                return None
            failed = [text for text in self._failed.values() if len(text) > self._num_retries]
            return failed[0][-1] if len(failed) > 1 else None

    def make_wanted(self) -> None:
        """Train all that is wanted; returns when it has ended.

        Raises:
            UserError: See `delivered`.
            TrainingError: If no ingredient can be trained.
        """
        with self._lock:
            self._start()
            while (self._running or self._queue) and self._wrong is None:
                # NOTE: short waits, so that Ctrl-C is heard.
                self._lock.wait(LOOK_S)
            if self._wrong is not None:
                raise self._wrong
        refuse_exhausted(self)

    def close(self) -> None:
        """Start nothing any more."""
        with self._lock:
            self._closed = True
            self._queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        while self._queue and len(self._running) < self.room.at_once and not self._closed:
            path = self._queue.popleft()
            self._running.add(path)
            # A daemon: an interrupted command ends though a stage is still blocked in Ray.
            threading.Thread(target=self._work, args=(path,), daemon=True).start()

    def _work(self, path: str) -> None:
        made, error = None, ""
        try:
            made = self._make(self._declared[path], path)
            if made.path != path:
                raise ConfigError(_changed(self._declared[path]))
        except UserError as problem:
            with self._lock:
                self._wrong = self._wrong or problem
                self._closed = True
                self._running.discard(path)
                self._lock.notify_all()
            return
        except SafemergeError as problem:
            made, error = None, str(problem)
        except Exception as problem:  # noqa: BLE001 - a border: reported with the trials that want it
            error = f"training failed: {problem!r}"
        with self._lock:
            self._running.discard(path)
            failures = self._failed.setdefault(path, [])
            if made is None:
                failures.append(error)
            else:
                self._num_made += 1
            final = len(failures) > self._num_retries
            self._delivered.append(Delivery(path, made, error, final=final))
            self._start()
            self._lock.notify_all()


def resolve_made(
    spec: StudySpec, ingredients: Ingredients, *, needed: Collection[str] = ()
) -> StudySpec:
    """Return a study whose base and experts are trained, and those variants that were before.

    Every training file and its data are read: what is wrong with one is reported now. Where
    vocabularies are joined all variants are trained, for a union is of all models.

    Args:
        spec: The study as declared, located.
        ingredients: Trains.
        needed: Names of variants that must be there from the start.

    Raises:
        UserError, TrainingError: See `Ingredients.resolve`.
    """
    if spec.vocabulary == "union":
        return spec.with_checkpoints(ingredients.resolve(spec.all_checkpoints))
    variants = [variant.checkpoint for variant in spec.variants]
    training_plan(spec.all_checkpoints)
    by_name = ingredients.resolve(spec.checkpoints)
    ingredients.prepare(variants)
    untrained, ready = {}, []
    for ref in variants:
        folder = future_folder(ref)
        assert folder is not None, "what it is trained from is there"
        if is_finished(folder) or ref.name in needed:
            ready.append(ref)
        else:
            untrained[ref.name] = _to_be_trained(ref, folder)
    if ready:
        by_name.update(ingredients.resolve([spec.base, *ready]))
    return spec.with_checkpoints({**by_name, **untrained}).with_untrained(untrained)


def make_supply(declared: StudySpec, resolved: StudySpec, ingredients: Ingredients) -> Supply:
    """Return what trains the variants of a study that are not made; Ray must be connected.

    Args:
        declared: The study as declared, located.
        resolved: The same of `resolve_made`.
        ingredients: Trains.
    """
    paths = {ref.name: str(ref.path) for ref in resolved.trained if ref.name in resolved.untrained}
    refs = {variant.checkpoint.name: variant.checkpoint for variant in declared.variants}
    wanted = {path: refs[name] for name, path in paths.items()}

    def make(ref: CheckpointRef, path: str) -> CheckpointRef:
        if str(future_folder(ref)) != path:
            raise ConfigError(_changed(ref))
        return ingredients.resolve([declared.base, ref])[ref.name]

    workers = [
        stage.load().workers for ref in refs.values() if (stage := stage_file(ref)) is not None
    ]
    files = gathered_files(list(refs.values()))
    workers += [load_statistics_spec(file).workers for file in files]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Supply(
        make,
        wanted,
        find_room(resolved, workers, nodes),
        num_retries=resolved.evaluator.num_retries,
        num_there=len(refs) - len(wanted),
    )


def placer(
    declared: StudySpec, resolved: StudySpec, supply: Supply, ingredients: Ingredients
) -> Place:
    """Return what says where an expert with settings of its own is or will be.

    Args:
        declared: The study as declared, located.
        resolved: The same with its variants' folders.
        supply: Learns how to train what is not there.
        ingredients: Fingerprints what is.
    """
    experts = {ref.name: ref for ref in declared.experts}
    known = {
        before.expert: (before.checkpoint, str(after.checkpoint.path))
        for before, after in zip(declared.variants, resolved.variants, strict=True)
    }

    def place(expert: str, settings: Mapping[str, Setting]) -> CheckpointRef:
        variant, path = known[expert]
        if str(future_folder(variant)) != path:
            raise ConfigError(_changed(variant))
        ref = experts[expert]
        ref = ref.model_copy(update={"settings": {**ref.settings, **settings}})
        folder = future_folder(ref)
        assert folder is not None, "variants of this expert were trained"
        if is_finished(folder):
            return ingredients.resolve([declared.base, ref])[expert]
        supply.declare(str(folder), ref)
        return _to_be_trained(ref, folder)

    return place


def lacking_models(study: SearchStudy, place: Place) -> list[str]:
    """Return the folders of models that front and references were scored with, and that are gone.

    They may have been removed from the cache since.

    Args:
        study: The study; it lacks nothing before its budget is spent.
        place: Says where an expert with settings of its own is or will be.
    """
    if not study.done:
        return []
    untrained = untrained_paths(study.spec)
    references = [item for item in study.records if item.role == "reference" and item.result]
    lacking: list[str] = []
    for record in [*study.front(), *references]:
        lacking += wanted_paths(MergeRecipe.model_validate(record.recipe), untrained)
        if record.exact_of is None:
            continue
        folders = {name: Path(str(end.get("path"))) for name, end in record.experts()}
        for name, settings in expert_settings(record.params).items():
            if not is_finished(folders[name]):
                ref = place(name, settings)
                lacking += [str(ref.path)] if ref.digest is None else []
    return list(dict.fromkeys(lacking))


def make_lacking(study: SearchStudy, supply: Supply, place: Place) -> None:
    """Train `lacking_models` again; call it without an evaluator.

    Raises:
        UserError, TrainingError: If one cannot be trained.
        StudyError: If it comes out with other weights than it had.
    """
    lacking = lacking_models(study, place)
    for path in lacking:
        supply.want(path)
    if not lacking:
        return
    supply.make_wanted()
    for delivery in supply.delivered():
        if delivery.made is None:
            raise TrainingError(
                f"{delivery.path}: this model must be there for the report; got: {delivery.error}"
            )
        study.add_trained(delivery.made)


def _changed(ref: CheckpointRef) -> str:
    return (
        f"{ref.align or ref.finetune}: file and data must stay as they were when the search "
        "began; got other ones. Restore them and resume with --resume."
    )


def _to_be_trained(ref: CheckpointRef, folder: Path) -> CheckpointRef:
    """A checkpoint without fingerprint: one that is still to be trained."""
    changes: dict[str, object] = {"align": None, "finetune": None, "settings": {}}
    return ref.model_copy(update={**changes, "path": str(folder)})


def refuse_exhausted(supply: Supply | None) -> None:
    """End a search that can train nothing.

    Raises:
        TrainingError: If so.
    """
    text = supply.exhausted if supply is not None else None
    if text is not None:
        raise TrainingError(f"no ingredient could be trained; got: {text}")
