"""From declared checkpoints to checkpoints on disk: unpacked, trained once, fingerprinted."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import load_document
from safemerge.config.training import AlignSpec, FinetuneSpec
from safemerge.distributed.statistics import (
    gathered_files,
    load_statistics_spec,
    resolve_statistics,
)
from safemerge.engines.chat import ChatFormat
from safemerge.errors import ConfigError
from safemerge.training.batch import load_mixture
from safemerge.training.ingredient import ingredient_digest, ingredient_folder, is_finished
from safemerge.training.packaged_model import packaged_model
from safemerge.weights.fingerprint import fingerprint


def load_training_spec(path: str | Path, kind: str) -> FinetuneSpec | AlignSpec:
    """Read an alignment (``align``) or fine-tuning (``finetune``) file, paths resolved."""
    model: type[Any] = AlignSpec if kind == "align" else FinetuneSpec
    spec: FinetuneSpec | AlignSpec = load_document(path, model).located(Path(path).parent)
    return spec


def stage_file(ref: CheckpointRef) -> tuple[str, str] | None:
    """Return (file, kind) of a checkpoint that is trained, None for one that exists."""
    if ref.align is not None:
        return ref.align, "align"
    if ref.finetune is not None:
        return ref.finetune, "finetune"
    return None


def training_plan(refs: Sequence[CheckpointRef]) -> list[list[tuple[str, str]]]:
    """Order the training files that checkpoints need, dependencies first.

    Args:
        refs: Located references.

    Returns:
        Waves of (file, kind); stages of a wave do not depend on each other.

    Raises:
        ConfigError: If files refer to each other in a circle.
    """
    depth: dict[tuple[str, str], int] = {}

    def visit(ref: CheckpointRef, trail: tuple[str, ...]) -> int:
        stage = stage_file(ref)
        if stage is None:
            return 0
        if stage[0] in trail:
            raise ConfigError(
                f"{stage[0]}: training files must not need each other in a circle; got "
                f"{' -> '.join([*trail, stage[0]])}."
            )
        base = load_training_spec(*stage).base
        depth[stage] = 1 + visit(base, (*trail, stage[0]))
        return depth[stage]

    for ref in refs:
        visit(ref, ())
    waves: list[list[tuple[str, str]]] = [[] for _ in range(max(depth.values(), default=0))]
    for stage, level in depth.items():
        waves[level - 1].append(stage)
    return waves


def needs_cluster(ref: CheckpointRef) -> bool:
    """Tell whether a checkpoint is trained or measured, unless that was done before."""
    gathered = ref.statistics is not None and ref.statistics.gather is not None
    return stage_file(ref) is not None or gathered


class Ingredients:
    """Makes declared checkpoints and their statistics exist, each once.

    Args:
        say: Called with one line of progress.
        on_step: Called with a stage's name, a step's metrics and the number of steps.
        resume: Continue unfinished training from its last checkpoint; else start it anew.
    """

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        on_step: Callable[[str, Any, int], None],
        resume: bool = True,
    ) -> None:
        self._say = say
        self._on_step = on_step
        self._resume = resume
        self._folders: dict[tuple[str, str], Path] = {}

    def resolve(self, refs: Sequence[CheckpointRef]) -> dict[str, CheckpointRef]:
        """Return every reference as a fingerprinted path, by name; train what is missing.

        Args:
            refs: References with unique names. The first is the base that statistics are
                gathered on: it gives the chat format, and what adapters are adapters of.

        Raises:
            UserError: If a path, package, training or statistics file is wrong.
            TrainingError: If a stage or the gathering of statistics failed.
        """
        for file in gathered_files(refs):
            load_statistics_spec(file)  # a wrong file is told before anything is trained
        for wave in training_plan(refs):
            self._train_wave(wave)
        resolved = {}
        for ref in refs:
            folder = self._folder(ref)
            found = fingerprint(folder)
            if ref.digest is not None and ref.digest != found:
                raise ConfigError(
                    f"checkpoint '{ref.name}': weights must have fingerprint {ref.digest}; got "
                    f"{found} in {folder}. The files changed since the recipe was written."
                )
            resolved[ref.name] = ref.resolved_to(folder, fingerprint=found)
        return resolve_statistics(list(resolved.values()), say=self._say)

    def _folder(self, ref: CheckpointRef) -> Path:
        if ref.package is not None:
            return packaged_model(ref.package, say=self._say)
        stage = stage_file(ref)
        return self._folders[stage] if stage is not None else Path(str(ref.path))

    def _train_wave(self, wave: Sequence[tuple[str, str]]) -> None:
        from safemerge.distributed.train import StageRun, run_stages

        runs = []
        for stage in wave:
            spec = load_training_spec(*stage)
            base = self._folder(spec.base)
            base_fingerprint = fingerprint(base)
            mixture = load_mixture(spec, ChatFormat(base))
            key = ingredient_digest(spec, base_fingerprint=base_fingerprint, mixture=mixture)
            folder = ingredient_folder(spec.name, key)
            self._folders[stage] = folder
            if is_finished(folder):
                self._say(f"{spec.name}: cached ({folder.name})")
                continue
            rows = sum(mixture.sizes)
            self._say(f"{spec.name}: training {spec.steps} steps on {rows} samples (Ray Train)")
            provenance = {"digest": key, "base_fingerprint": base_fingerprint}
            stage_run = StageRun(spec, base, folder, provenance)
            if not self._resume:
                shutil.rmtree(stage_run.work, ignore_errors=True)
            runs.append(stage_run)
        if runs:
            run_stages(runs, on_progress=self._on_step)
