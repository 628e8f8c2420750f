"""Training stages on Ray Train: one TorchTrainer run a stage, resumable from its checkpoints."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from pydantic import TypeAdapter

from safemerge.config.alignment import AlignSpec, HarmfulAlign
from safemerge.config.training import FinetuneSpec
from safemerge.distributed.fit import cause_of, start_fit
from safemerge.engines.chat import ChatFormat
from safemerge.engines.precision import compute_dtype
from safemerge.errors import CheckpointChangedError, TrainingError
from safemerge.run_folder import RunFolder
from safemerge.training.batch import load_mixture
from safemerge.training.device import claim_device
from safemerge.training.full import (
    ShardedModel,
    products_in,
    save_full,
    sharded_loss,
    whole_weights,
)
from safemerge.training.gradient import Loss
from safemerge.training.ingredient import FINGERPRINT, MARKER, MEASURED
from safemerge.training.log import FollowedLog, MetricsLog
from safemerge.training.lora import attach_lora, load_lora, save_trained
from safemerge.training.measured import StageMeasures
from safemerge.training.method import Method, held_out_loss, make_method, method_batches
from safemerge.training.sft import StepMetrics, make_optimizer, stage_loss, train
from safemerge.training.state import load_state, save_state
from safemerge.training.until import RefusalGate
from safemerge.weights.fingerprint import fingerprint
from safemerge.weights.hub import on_this_node
from safemerge.weights.skeleton import auto_class

_SPEC: TypeAdapter[FinetuneSpec | AlignSpec] = TypeAdapter(FinetuneSpec | AlignSpec)
POLL_S = 0.5
"""Seconds between looks at a stage's progress."""


class StageFolder(RunFolder):
    """The folder of a stage's checkpoints and metrics."""

    noun = "training stage"


@dataclass(frozen=True)
class StageRun:
    """One training stage to run."""

    spec: FinetuneSpec | AlignSpec
    base: Path
    """Folder of the checkpoint that training starts from."""
    folder: Path
    """Where the finished checkpoint goes."""
    provenance: dict[str, Any]
    """Written into the finished folder's marker file."""
    label: str
    """Name for people; unique among stages that run together."""

    @property
    def work(self) -> Path:
        """Folder of checkpoints and metrics; kept beside the result."""
        return self.folder.with_name(self.folder.name + ".work")


def run_stages(
    stages: list[StageRun],
    *,
    on_progress: Callable[[str, StepMetrics, int], None],
    restart: bool = False,
) -> None:
    """Train stages that do not depend on each other, side by side as the cluster allows.

    Args:
        stages: What to train.
        on_progress: Called with the stage's name, a step's metrics and the number of steps.
        restart: Drop what is unfinished, instead of continuing it.

    Raises:
        TrainingError: If a stage failed; the others are finished first.
        RunFolderError: If another process trains one of them.
    """
    with ExitStack() as stack:
        folders = [StageFolder(stage.work) for stage in stages]
        for folder in folders:
            stack.enter_context(folder.locked())
        for folder in folders if restart else ():
            folder.empty()
        _run_stages(stages, on_progress)


def _run_stages(
    stages: list[StageRun], on_progress: Callable[[str, StepMetrics, int], None]
) -> None:
    # Before they start: a resumed stage's old steps are not reported again.
    logs = [(stage, FollowedLog(stage.work)) for stage in stages]
    pending = {_start(stage): stage for stage in stages}
    failures = []
    while pending:
        done, _ = wait(pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
        for stage, log in logs:
            for values in log.new():
                on_progress(stage.label, StepMetrics(**values), stage.spec.steps)
        for fit in done:
            stage = pending.pop(fit)
            if (error := fit.exception()) is not None:
                failures.append(f"{stage.label}: {cause_of(error)}")
    if failures:
        raise TrainingError(
            f"training failed: {'; '.join(failures)}. Checkpoints are kept: resume from the last "
            "one with --resume."
        )


def _start(stage: StageRun) -> Future[None]:
    config = {
        "spec": stage.spec.model_dump_json(by_alias=True),
        "base": str(stage.base),
        "folder": str(stage.folder),
        "work": str(stage.work),
        "provenance": json.dumps(stage.provenance),
    }
    return start_fit(
        _train_worker,
        config,
        stage.spec.workers,
        name="train",
        storage=stage.work,
        num_to_keep=1,
    )


def _train_worker(config: dict[str, str]) -> None:
    """What every Ray Train worker runs."""
    spec = _SPEC.validate_json(config["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = claim_device(spec.workers)
    torch.manual_seed(spec.seed)  # noqa: TID251 - seeds the adapter's initial weights
    base = on_this_node(config["base"])
    chat = ChatFormat(base, spec.chat)
    mixture = load_mixture(spec, chat)
    several = world_size > 1
    model, loss = _load_model(spec, base, device=device, several=several)
    _check_base(spec, base, json.loads(config["provenance"])["base_fingerprint"])
    sharded = isinstance(model, ShardedModel)
    optimizer = make_optimizer(model, spec)
    method = make_method(
        model,
        spec,
        device=device,
        all_reduce=torch.distributed.all_reduce if several else None,
        reduce_gradients=_all_reduce if several else None,
        loss=loss,
        sharded=sharded,
    )
    first_step = _restore(model, optimizer, method)
    log = MetricsLog(Path(config["work"]), done=first_step) if rank == 0 else None
    until, measures = spec.until if isinstance(spec, AlignSpec) else None, StageMeasures(spec)
    gate = None
    if until is not None:
        gate = RefusalGate(until, model, mixture.asked, chat=chat, base=base, device=device)

    def measure(step: int) -> dict[str, float]:
        """Loss on held-out harmful rows, which the first worker computes, all if it is sharded."""
        known = {} if gate is None else gate.at(step)
        harmful = spec.harmful if isinstance(spec, HarmfulAlign) else None
        if harmful is None or not mixture.test or step % harmful.test_every:
            return known
        if rank > 0 and not sharded:
            return known
        size = harmful.batch_size
        found = held_out_loss(model, mixture, batch_size=size, device=device, loss=loss)
        return {**known, "harmful_test_loss": found}

    def on_step(metrics: StepMetrics) -> None:
        measures.add(metrics)
        if log is not None:
            log.write(metrics)
        # Ray Train takes one report in a polling interval and lets the worker wait for it: only
        # checkpoints are reported, the metrics have a file of their own.
        if metrics.step % spec.checkpoint_every == 0 and metrics.step < spec.steps:
            _report(model, optimizer, method, metrics, save=sharded or rank == 0)

    steps = train(
        model,
        optimizer,
        method_batches(mixture, spec, rank=rank, world_size=world_size),
        spec,
        first_step=first_step,
        method=method,
        measure=measure,
        on_step=on_step,
        stop=None if gate is None else gate.is_passed,
    )
    if log is not None:
        log.close()
    refusal = None if gate is None else gate.refusal(steps)
    measured = measures.record(steps=steps, refusal=refusal, num_asked=len(mixture.asked))
    weights = whole_weights(model) if spec.parameters == "full" else {}
    if rank == 0:
        _publish(model, weights, spec, config, measured)


def _check_base(spec: FinetuneSpec | AlignSpec, base: Path, wanted: str) -> None:
    """Check, once it is loaded, that the base is the one that the result is named after."""
    found = fingerprint(base)
    if found != wanted:
        raise CheckpointChangedError(
            f"{spec.name}: the base must have fingerprint {wanted}; got {found} in {base}: its "
            f"files changed since training was planned. Restore them, or start again."
        )


def _load_model(
    spec: FinetuneSpec | AlignSpec, base: Path, *, device: str, several: bool
) -> tuple[Any, Loss]:
    """Return the model to train, adapted or sharded as declared, and its loss."""
    dtype = compute_dtype(spec.dtype, device=device)
    loss = stage_loss(spec)
    full = spec.parameters == "full"
    model: Any = auto_class(base).from_pretrained(base, dtype=torch.float32 if full else dtype)
    if full and several:
        sharded = ShardedModel(model, loss=loss, packing=spec.packing, device=device, dtype=dtype)
        return sharded, sharded_loss
    model = model.to(device)
    if full:
        return model, products_in(loss, device=device, dtype=dtype)
    if spec.adapter is None:
        return attach_lora(model, spec.lora, where=spec.name), loss
    return load_lora(model, Path(spec.adapter), base=base, where=spec.name), loss


def _all_reduce(gradients: list[torch.Tensor], num_targets: int) -> None:
    total = torch.tensor(float(num_targets), device=gradients[0].device)
    torch.distributed.all_reduce(total)
    for gradient in gradients:
        gradient.mul_(num_targets / float(total))
        torch.distributed.all_reduce(gradient)


def _report(
    model: Any,
    optimizer: torch.optim.Optimizer,
    method: Method,
    metrics: StepMetrics,
    *,
    save: bool,
) -> None:
    """Tell Ray Train of a checkpoint; all workers do so at the same steps."""
    if not save:
        ray.train.report(metrics.known())
        return
    with tempfile.TemporaryDirectory() as folder:
        save_state(
            Path(folder), model=model, optimizer=optimizer, method=method, step=metrics.step
        )
        ray.train.report(metrics.known(), checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(model: Any, optimizer: torch.optim.Optimizer, method: Method) -> int:
    """Load the newest checkpoint of this run, if any; return the steps already done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return load_state(Path(folder), model=model, optimizer=optimizer, method=method)


def _publish(
    model: Any,
    weights: dict[str, torch.Tensor],
    spec: FinetuneSpec | AlignSpec,
    config: dict[str, str],
    measured: dict[str, Any],
) -> None:
    """Write the result beside its place, then rename: a folder is whole or absent."""
    folder, base = Path(config["folder"]), on_this_node(config["base"])
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    if spec.parameters == "full":
        save_full(weights, base, scratch, where=spec.name)
    else:
        save_trained(model, base, scratch, output=spec.output)
    marker = {"spec": spec.resolved(), **json.loads(config["provenance"])}
    marker |= {MEASURED: measured} if measured else {}
    marker[FINGERPRINT] = fingerprint(scratch)
    (scratch / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)
