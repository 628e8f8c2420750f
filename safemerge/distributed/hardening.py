"""From declared methods to hardened models of each seed, adapters trained once."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from safemerge.cache import cache_dir
from safemerge.config.base import digest
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import load_document
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.robustness import RobustnessSpec
from safemerge.config.training import AlignSpec, FinetuneSpec
from safemerge.distributed.ingredient import Ingredients, load_training_spec, training_plan
from safemerge.errors import ConfigError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.writer import write_merged
from safemerge.weights.adapter import is_adapter


@dataclass(frozen=True)
class DenseStep:
    """A dense checkpoint that can be made at any time from others."""

    recipe: MergeRecipe
    folder: Path


@dataclass(frozen=True)
class Hardened:
    """A model of one method and seed, ready to be attacked."""

    identity: str
    """Digest of its weights' making."""
    folder: Path
    """Where its dense weights are, or will be after `steps`."""
    steps: tuple[DenseStep, ...] = field(default=())
    """What makes them, in order; empty for a checkpoint that exists."""
    adapter: Path | None = None
    """The hardened adapter, if it was trained as one."""
    adapter_base: Path | None = None
    """Folder of the model that the adapter belongs to."""


def method_recipe(path: str) -> MergeRecipe:
    """Read a method's recipe file, its relative references taken from its own folder."""
    return load_document(path, MergeRecipe).located(Path(path).resolve().parent)


def hardening_stages(spec: RobustnessSpec) -> list[FinetuneSpec | AlignSpec]:
    """Return every training file behind the methods, and check that they can be attacked.

    Raises:
        ConfigError: If a file is wrong, two align files have one name, or mode ``same`` meets a
            method without an adapter.
    """
    refs = [*spec.checkpoints]
    for item in spec.methods:
        if item.recipe is not None:
            refs += method_recipe(item.recipe).checkpoints
    files = [stage for wave in training_plan(refs) for stage in wave]
    stages = [file.load() for file in files]
    named: dict[str, str] = {}
    for file, stage in zip(files, stages, strict=True):
        if file.kind != "align":
            continue
        if named.setdefault(stage.name, file.file) != file.file:
            raise ConfigError(
                f"{file.file}: an alignment's name must be its own; got {stage.name!r}, which "
                f"{named[stage.name]} has too. Rename one."
            )
        if stage.parameters == "full" and any(item.mode == "same" for item in spec.attacks):
            raise ConfigError(
                f"{file.file}: mode same needs an adapter; got a stage with parameters full. Drop "
                "the mode, or train an adapter."
            )
    return stages


class Hardening:
    """Makes the hardened models of a measurement.

    Args:
        spec: The measurement, located.
        folder: Run folder; the stages' files with their seeds are written there.
        say: Called with one line of progress.
        on_step: See `Ingredients`.
    """

    def __init__(
        self,
        spec: RobustnessSpec,
        folder: Path,
        *,
        say: Callable[[str], None],
        on_step: Callable[[str, Any, int], None],
    ) -> None:
        self._spec = spec
        self._folder = folder
        self._ingredients = Ingredients(say=say, on_step=on_step)
        self._refs: dict[str, CheckpointRef] = {}

    def prepare(self) -> dict[tuple[str, int], Hardened]:
        """Train or find every alignment of every seed; return models by (method, seed).

        Raises:
            UserError: If a checkpoint or a training file is wrong.
            TrainingError: If a stage failed.
        """
        wanted = {
            _key(ref): ref
            for seed in self._spec.seeds
            for item in self._spec.methods
            for ref in self._ingredient_refs(item.checkpoint, item.recipe, seed)
        }
        # Own names: recipes may call different models alike.
        names = {key: f"model{index}" for index, key in enumerate(wanted)}
        resolved = self._ingredients.resolve(
            [ref.model_copy(update={"name": names[key]}) for key, ref in wanted.items()]
        )
        self._refs = {key: resolved[name] for key, name in names.items()}
        return {
            (item.name, seed): (
                self._merged(item.recipe, seed)
                if item.checkpoint is None
                else self._single(item.checkpoint, seed)
            )
            for seed in self._spec.seeds
            for item in self._spec.methods
        }

    def _ingredient_refs(
        self, checkpoint: CheckpointRef | None, recipe: str | None, seed: int
    ) -> Iterator[CheckpointRef]:
        refs = method_recipe(recipe).checkpoints if recipe is not None else (checkpoint,)
        for ref in refs:
            if ref is None:
                continue
            yield self._seeded(ref, seed)
            if ref.align is not None:
                yield _aligned(ref).base

    def _seeded(self, ref: CheckpointRef, seed: int) -> CheckpointRef:
        """An alignment becomes a file of its own with the seed, trained as an adapter."""
        if ref.align is None:
            return ref
        stage = _aligned(ref)
        chosen = seed if self._spec.reseed else stage.seed
        changed = f"-{digest(ref.settings)[:6]}" if ref.settings else ""
        name = f"{stage.name}{changed}-seed{chosen}"
        path = self._folder / "stages" / f"{name}.yaml"
        document = {**stage.resolved(), "name": name, "seed": chosen}
        if stage.parameters == "lora":
            document["output"] = "adapter"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return CheckpointRef(name="model", align=str(path.resolve()))

    def _single(self, ref: CheckpointRef, seed: int) -> Hardened:
        found = self._refs[_key(self._seeded(ref, seed))]
        folder = Path(str(found.path))
        if ref.align is None:
            if is_adapter(folder):
                raise ConfigError(
                    f"methods.{ref.name}: a checkpoint must hold full weights; got the adapter "
                    f"{folder}. Write it out with `safemerge merge`, or name its align file."
                )
            return Hardened(str(found.digest), folder)
        if not is_adapter(folder):
            return Hardened(str(found.digest), folder)
        base = self._refs[_key(_aligned(ref).base)].model_copy(update={"name": "base"})
        trained = found.model_copy(update={"name": "trained"})
        recipe = MergeRecipe(
            base=base,
            experts=[trained],
            method=Linear(name="linear", weights={trained.name: 1.0}),
        )
        dense = _dense_folder(recipe.digest)
        return Hardened(
            recipe.digest,
            dense,
            (DenseStep(recipe, dense),),
            adapter=folder,
            adapter_base=Path(str(base.path)),
        )

    def _merged(self, path: str | None, seed: int) -> Hardened:
        recipe = method_recipe(str(path))
        steps: list[DenseStep] = []
        by_name: dict[str, CheckpointRef] = {}
        identities: dict[str, str] = {}
        for ref in recipe.checkpoints:
            if ref.align is None:
                found = self._refs[_key(ref)].model_copy(update={"name": ref.name})
                by_name[ref.name], identities[ref.name] = found, str(found.digest)
                continue
            hardened = self._single(ref, seed)
            steps += hardened.steps
            by_name[ref.name] = CheckpointRef(name=ref.name, path=str(hardened.folder))
            identities[ref.name] = hardened.identity
        merged = recipe.with_checkpoints(by_name)
        settings = {**recipe.resolved(), "base": recipe.base.name}
        settings["experts"] = [expert.name for expert in recipe.experts]
        identity = digest({"settings": settings, "models": identities})
        folder = _dense_folder(identity)
        return Hardened(identity, folder, (*steps, DenseStep(merged, folder)))


def make_dense(steps: Sequence[DenseStep]) -> None:
    """Write the dense checkpoint that the last step makes, unless it exists.

    Raises:
        CheckpointMismatchError: If the models of a recipe do not fit each other.
        PreflightError: If the disk is full.
    """
    if not steps or steps[-1].folder.is_dir():
        return
    for step in steps:
        step.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{step.folder}.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if step.folder.is_dir():
                continue
            partial = step.folder.with_name(step.folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            resident = ResidentCheckpoints.open(step.recipe)
            write_merged(step.recipe, resident.checkpoints, partial)
            partial.rename(step.folder)
        finally:
            os.close(lock)


def drop_dense(folder: Path) -> None:
    """Remove a dense checkpoint that `make_dense` wrote; it can be made again."""
    shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)


def _key(ref: CheckpointRef) -> str:
    """What a reference points at, whatever it is called."""
    return ref.model_dump_json(exclude={"name"})


def _aligned(ref: CheckpointRef) -> FinetuneSpec | AlignSpec:
    """Read the alignment file of a reference, its settings replaced."""
    return load_training_spec(str(ref.align), "align", settings=ref.settings)


def _dense_folder(identity: str) -> Path:
    return cache_dir() / "hardened" / identity
