"""The cells of a robustness measurement as Ray tasks: attack, then ask the suites."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
import torch

from safemerge.cell_store import CellRecord, LossPoint
from safemerge.config.attack import attack_stage
from safemerge.config.base import digest
from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import Linear, MergeRecipe
from safemerge.config.robustness import Cell, RobustnessSpec
from safemerge.config.suite import SuiteSpec
from safemerge.data.suite import LoadedSuite
from safemerge.distributed.hardening import Hardened, drop_dense, make_dense
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Engine
from safemerge.errors import EngineError, PreflightError, SafemergeError, UserError
from safemerge.evaluation import evaluate_candidate, prepare_split
from safemerge.provenance import utc_now
from safemerge.records import CandidateResult
from safemerge.training.attack import AttackTrace, run_attack
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
    shutil.rmtree(job.scratch, ignore_errors=True)
    started = time.perf_counter()
    try:
        make_dense(job.hardened.steps)
        recipe, trace = _attacked(job, spec, device)
        gc.collect()  # peft's models hold themselves; the engine needs the room
        trained = time.perf_counter()
        asked = [suites[suite.name] for suite in _suites(spec, job.cell)]
        result = _evaluate(recipe, asked, spec)
    except UserError:
        raise
    except SafemergeError as error:
        return _failed(job, str(error)).model_dump_json()
    finally:
        shutil.rmtree(job.scratch, ignore_errors=True)
    return CellRecord(
        key=job.key,
        cell=job.cell,
        state="COMPLETE",
        result=result,
        curve=[LossPoint(step=step, harmful_loss=loss) for step, loss in trace.curve],
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
        device=device,
    )
    if stage.output == "dense":
        return _recipe(job.scratch, None), trace
    return _recipe(base, job.scratch), trace


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
