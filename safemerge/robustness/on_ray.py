"""A robustness measurement on Ray: models hardened once, cells attacked and asked as tasks."""

from __future__ import annotations

import gc
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
import yaml

from safemerge.cache import cache_dir
from safemerge.config.alignment import AlignSpec
from safemerge.config.base import digest
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.document import load_document
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.suite import SuiteSpec
from safemerge.config.training import FinetuneSpec
from safemerge.data.suite import LoadedSuite
from safemerge.distributed.ingredient import Ingredients, load_training_spec, training_plan
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Engine
from safemerge.errors import ConfigError, EngineError, PreflightError, SafemergeError, UserError
from safemerge.evaluation import evaluate_candidate, prepare_split
from safemerge.files import locked_file
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.writer import write_merged
from safemerge.provenance import utc_now
from safemerge.records import CandidateResult
from safemerge.robustness.attack import AttackTrace, run_attack
from safemerge.robustness.attack_spec import attack_stage
from safemerge.robustness.cell_store import CellRecord, HarmPoint, LossPoint
from safemerge.robustness.spec import Cell, RobustnessSpec
from safemerge.weights.adapter import is_adapter
from safemerge.weights.fingerprint import fingerprint

CELL_VERSION = 1
"""Raised when a change of the code changes what a cell measures."""


@dataclass(frozen=True)
class CellJob:
    """One cell to run."""

    key: str
    cell: Cell
    hardened: Hardened
    scratch: Path
    """Folder for the attacked weights, gone when the cell is done."""


def cell_key(
    spec: RobustnessSpec,
    cell: Cell,
    hardened: Hardened,
    *,
    attack_content: str,
    suite_content: Mapping[str, str],
) -> str:
    """Return the digest of everything that a cell's result depends on.

    Args:
        spec: The measurement; names, resources and other cells do not count.
        cell: The cell.
        hardened: Its model.
        attack_content: Digest of the attack's rows.
        suite_content: Digest by suite of what is asked.
    """
    asked = [suite.name for suite in _suites(spec, cell)]
    attack = None
    if cell.mode is not None:
        # Only what is not at its default: a setting that comes later leaves older cells valid.
        attack = attack_stage(spec, cell).model_dump(mode="json", exclude_defaults=True)
        for name in ("name", "base", "data"):
            del attack[name]
        if "poison" in attack:
            attack["poison"] = attack["poison"]["ratio"]
        attack["rows"] = attack_content
        attack["curve_every"] = spec.finetune.curve_every
        if spec.finetune.harm_every is not None:
            attack["harm_every"] = spec.finetune.harm_every
    return digest(
        {
            "version": CELL_VERSION,
            "cell": cell.model_dump(exclude={"method"}),
            "hardened": hardened.identity,
            "attack": attack,
            "suites": {name: suite_content[name] for name in asked},
            "engine": [spec.evaluator.engine, spec.evaluator.dtype],
        }
    )


def _suites(spec: RobustnessSpec, cell: Cell) -> list[SuiteSpec]:
    return spec.suites if cell.mode is None else [spec.harm, spec.accuracy]


def run_cells(
    spec: RobustnessSpec,
    jobs: Sequence[CellJob],
    suites: Mapping[str, LoadedSuite],
    *,
    on_record: Callable[[CellRecord], None],
) -> None:
    """Run cells side by side as the cluster allows; needs a cluster.

    Dense weights are written when the first cell needs them and removed after the last one.

    Args:
        spec: The measurement.
        jobs: What to run, in order of preference.
        suites: Suites of the measured split, by name.
        on_record: Called with every finished cell, in the order in which they finish.

    Raises:
        UserError: If the cluster is too small for a cell, or a cell found the input wrong.
    """
    _check_resources(spec)
    task = ray.remote(num_cpus=spec.resources.cpus, num_gpus=spec.resources.gpus, max_retries=1)(
        _run_cell
    )
    shared_spec = ray.put(spec.model_dump_json(by_alias=True))
    shared_suites = ray.put(dict(suites))
    running = {task.remote(job, shared_spec, shared_suites): job for job in jobs}
    needed: dict[Path, set[str]] = {}
    for job in jobs:
        for step in job.hardened.steps:
            needed.setdefault(step.folder, set()).add(job.key)
    try:
        while running:
            done, _ = ray.wait(list(running), timeout=1.0)
            for reference in done:
                job = running.pop(reference)
                on_record(_collected(reference, job))
                for folder in [path for path, keys in needed.items() if job.key in keys]:
                    needed[folder].discard(job.key)
                    if not needed[folder]:
                        del needed[folder]
                        drop_dense(folder)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _collected(reference: ray.ObjectRef, job: CellJob) -> CellRecord:
    try:
        return CellRecord.model_validate_json(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        return _failed(job, str(error.cause or error).strip().splitlines()[-1])
    except ray.exceptions.RayError as error:
        return _failed(job, f"the worker was lost; got: {str(error).strip().splitlines()[0]}")


def _failed(job: CellJob, reason: str) -> CellRecord:
    return CellRecord(
        key=job.key, cell=job.cell, state="FAIL", reason=reason, finished_at=utc_now()
    )


def _check_resources(spec: RobustnessSpec) -> None:
    found = ray.cluster_resources()
    for name, wanted in (("CPU", spec.resources.cpus), ("GPU", spec.resources.gpus)):
        if wanted > found.get(name, 0.0):
            raise PreflightError(
                f"resources: a cell's {name}s must fit the cluster; got {wanted:g} of "
                f"{found.get(name, 0.0):g}. Lower resources.{name.lower()}s or add machines."
            )


def _run_cell(job: CellJob, spec_json: str, suites: dict[str, LoadedSuite]) -> str:
    """Run one cell (in a Ray task); return its record as JSON."""
    spec = RobustnessSpec.model_validate_json(spec_json)
    device = "cuda" if spec.resources.gpus and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(max(1, int(spec.resources.cpus)))
    _clear(job.scratch)
    started = time.perf_counter()
    try:
        make_dense(job.hardened.steps)
        recipe, trace = _attacked(job, spec, device)
        gc.collect()  # peft's models hold themselves; the engine needs the room
        trained = time.perf_counter()
        asked = [suites[suite.name] for suite in _suites(spec, job.cell)]
        result = _evaluate(recipe, asked, spec)
        harm = _harm_curve(trace, recipe, result, suites, spec)
    except UserError:
        raise
    except SafemergeError as error:
        return _failed(job, str(error)).model_dump_json()
    finally:
        _clear(job.scratch)
    return CellRecord(
        key=job.key,
        cell=job.cell,
        state="COMPLETE",
        result=result,
        curve=[LossPoint(step=step, harmful_loss=loss) for step, loss in trace.curve],
        harm_curve=harm,
        training_losses=list(trace.losses),
        cut_rows=[count.words for count in trace.cut],
        train_s=trained - started,
        evaluate_s=time.perf_counter() - trained,
        finished_at=utc_now(),
    ).model_dump_json()


def _attacked(job: CellJob, spec: RobustnessSpec, device: str) -> tuple[MergeRecipe, AttackTrace]:
    """Attack the cell's model; return the recipe of the weights to measure."""
    base, cell = job.hardened.folder, job.cell
    if cell.mode is None:
        return _recipe(base, None), AttackTrace((), ())
    adapter = None
    if cell.mode == "same":
        if job.hardened.adapter is None or job.hardened.adapter_base is None:
            raise EngineError(f"{cell.label}: needs the hardened adapter; got none.")
        adapter, base = str(job.hardened.adapter), job.hardened.adapter_base
    stage = attack_stage(spec, cell, base=str(base), adapter=adapter)
    job.scratch.parent.mkdir(parents=True, exist_ok=True)
    trace = run_attack(
        stage,
        job.scratch,
        curve=spec.finetune.curve,
        curve_every=spec.finetune.curve_every,
        keep_every=spec.finetune.harm_every,
        device=device,
    )
    if stage.output == "dense":
        return _recipe(job.scratch, None), trace
    return _recipe(base, job.scratch), trace


def _clear(scratch: Path) -> None:
    for folder in [scratch, *scratch.parent.glob(f"{scratch.name}-step*")]:
        shutil.rmtree(folder, ignore_errors=True)


def _harm_curve(
    trace: AttackTrace,
    attacked: MergeRecipe,
    result: CandidateResult,
    suites: Mapping[str, LoadedSuite],
    spec: RobustnessSpec,
) -> list[HarmPoint]:
    """Ask the harm suite of the weights that were kept; the end is known."""
    if spec.finetune.harm_every is None or not trace.losses:
        return []
    metric, found = f"{spec.harm.name}.harmful_score", []
    for step, folder in trace.kept:
        whole = not is_adapter(folder)
        base = folder if whole else Path(str(attacked.base.path))
        recipe = _recipe(base, None if whole else folder)
        found.append((step, _evaluate(recipe, [suites[spec.harm.name]], spec)))
    return [
        HarmPoint(step=step, harmful_score=score)
        for step, measured in [*found, (len(trace.losses), result)]
        if not math.isnan(score := measured.value(metric))
    ]


def _recipe(base: Path, adapter: Path | None) -> MergeRecipe:
    """The weights of a folder, or of a folder with an adapter merged into it."""
    model = CheckpointRef(name="model", path=str(base), digest=fingerprint(base))
    added = base if adapter is None else adapter
    attacked = CheckpointRef(name="attacked", path=str(added), digest=fingerprint(added))
    weighed = model if adapter is None else attacked
    return MergeRecipe(
        base=model,
        experts=[attacked],
        method=Linear(name="linear", weights={weighed.name: 1.0}),
    )


def _evaluate(
    recipe: MergeRecipe, asked: Sequence[LoadedSuite], spec: RobustnessSpec
) -> CandidateResult:
    evaluator = spec.evaluator
    prepared = prepare_split(
        asked, ChatFormat(str(recipe.base.path)), max_model_len=evaluator.max_model_len
    )
    engine = _engine(recipe, spec)
    try:
        return evaluate_candidate(
            engine, recipe, prepared, aggregates={}, max_unscored=evaluator.max_unscored
        )
    finally:
        engine.close()


def _engine(recipe: MergeRecipe, spec: RobustnessSpec) -> Engine:
    if spec.evaluator.engine == "transformers":
        from safemerge.engines.transformers_engine import TransformersEngine

        return TransformersEngine(recipe, spec.evaluator)
    from safemerge.engines.vllm_engine import VllmEngine

    return VllmEngine(recipe, spec.evaluator, in_process=True)


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
        with locked_file(Path(f"{step.folder}.lock"), os.O_RDWR | os.O_CREAT):
            if step.folder.is_dir():
                continue
            partial = step.folder.with_name(step.folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            resident = ResidentCheckpoints.open(step.recipe)
            write_merged(step.recipe, resident.checkpoints, partial)
            partial.rename(step.folder)


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
