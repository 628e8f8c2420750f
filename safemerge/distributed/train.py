"""Training stages on Ray Train: one TorchTrainer run a stage, resumable from its checkpoints."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from pydantic import TypeAdapter
from ray.train.torch import TorchTrainer

from safemerge.config.training import AlignSpec, FinetuneSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.precision import compute_dtype
from safemerge.errors import SafemergeError, TrainingError
from safemerge.training.batch import load_mixture
from safemerge.training.ingredient import MARKER
from safemerge.training.log import LOG_FILE, MetricsLog
from safemerge.training.lora import attach_lora, load_lora, save_trained
from safemerge.training.method import Method, held_out_loss, make_method, method_batches
from safemerge.training.sft import StepMetrics, make_optimizer, train

_SPEC: TypeAdapter[FinetuneSpec | AlignSpec] = TypeAdapter(FinetuneSpec | AlignSpec)
POLL_S = 0.5
"""Seconds between looks at a stage's progress."""


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

    @property
    def work(self) -> Path:
        """Folder of checkpoints and metrics; kept beside the result."""
        return self.folder.with_name(self.folder.name + ".work")


def run_stages(
    stages: list[StageRun], *, on_progress: Callable[[str, StepMetrics, int], None]
) -> None:
    """Train stages that do not depend on each other, side by side as the cluster allows.

    Args:
        stages: What to train.
        on_progress: Called with the stage's name, a step's metrics and the number of steps.

    Raises:
        TrainingError: If a stage failed; the others are finished first.
    """
    for stage in stages:
        stage.work.mkdir(parents=True, exist_ok=True)
    # NOTE: fit() blocks, so each runs in a task of its own that needs no CPU.
    fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
    pending = {
        fit.remote(
            stage.spec.model_dump_json(by_alias=True),
            str(stage.base),
            str(stage.folder),
            str(stage.work),
            json.dumps(stage.provenance),
        ): stage
        for stage in stages
    }
    seen = {stage.spec.name: 0 for stage in stages}
    failures = []
    while pending:
        done, _ = ray.wait(list(pending), timeout=POLL_S)
        for stage in stages:
            seen[stage.spec.name] = _follow(stage, seen[stage.spec.name], on_progress)
        for reference in done:
            stage = pending.pop(reference)
            try:
                ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                failures.append(f"{stage.spec.name}: {cause_of(error)}")
    if failures:
        raise TrainingError(
            f"training failed: {'; '.join(failures)}. Checkpoints are kept: the same command "
            "continues from the last one."
        )


def _follow(
    stage: StageRun, offset: int, on_progress: Callable[[str, StepMetrics, int], None]
) -> int:
    path = stage.work / LOG_FILE
    if not path.exists():
        return offset
    with path.open(encoding="utf-8") as file:
        file.seek(offset)
        while line := file.readline():
            if not line.endswith("\n"):
                break
            offset += len(line.encode())
            on_progress(stage.spec.name, StepMetrics(**json.loads(line)), stage.spec.steps)
    return offset


def cause_of(error: BaseException) -> str:
    """Return the innermost safemerge message, else the last line of Ray's report."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SafemergeError) and not isinstance(seen, ray.exceptions.RayError):
            return str(seen)
        seen = getattr(seen, "cause", None) or seen.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1])


def _fit(spec_json: str, base: str, folder: str, work: str, provenance: str) -> None:
    """Run one stage to its end (in a Ray task)."""
    spec = _SPEC.validate_json(spec_json)
    workers = spec.workers
    gpus = workers.gpus_per_worker
    resources = {"CPU": workers.cpus_per_worker}
    if gpus:
        resources["GPU"] = gpus
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "spec": spec_json,
            "base": base,
            "folder": folder,
            "work": work,
            "provenance": provenance,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers, use_gpu=gpus > 0, resources_per_worker=resources
        ),
        # The same name and storage make Ray Train continue from the newest checkpoint.
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=work,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()


def _train_worker(config: dict[str, str]) -> None:
    """What every Ray Train worker runs."""
    from transformers import AutoModelForCausalLM

    spec = _SPEC.validate_json(config["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = "cuda" if spec.workers.gpus_per_worker and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(max(1, int(spec.workers.cpus_per_worker)))
    torch.manual_seed(spec.seed)  # noqa: TID251 - seeds the adapter's initial weights
    chat = ChatFormat(config["base"])
    mixture = load_mixture(spec, chat)
    model = AutoModelForCausalLM.from_pretrained(
        config["base"], dtype=compute_dtype(spec.dtype, device=device)
    )
    model = model.to(device)
    if spec.adapter is None:
        model = attach_lora(model, spec.lora, where=spec.name)
    else:
        adapter, base = Path(spec.adapter), Path(config["base"])
        model = load_lora(model, adapter, base=base, where=spec.name)
    optimizer = make_optimizer(model, spec)
    several = world_size > 1
    method = make_method(
        model,
        spec,
        device=device,
        all_reduce=torch.distributed.all_reduce if several else None,
        reduce_gradients=_all_reduce if several else None,
    )
    first_step = _restore(model, optimizer, method)
    log = MetricsLog(Path(config["work"])) if rank == 0 else None

    def measure(step: int) -> dict[str, float]:
        """Loss on held-out harmful rows, which the first worker alone computes."""
        harmful = spec.harmful if isinstance(spec, AlignSpec) else None
        if log is None or harmful is None or not mixture.test or step % harmful.test_every:
            return {}
        size = harmful.batch_size
        loss = held_out_loss(model, mixture, batch_size=size, device=device)
        return {"harmful_test_loss": loss}

    def on_step(metrics: StepMetrics) -> None:
        if log is not None:
            log.write(metrics)
        due = metrics.step % spec.checkpoint_every == 0 and metrics.step < spec.steps
        _report(model, optimizer, method, metrics, save=due and rank == 0)

    train(
        model,
        optimizer,
        method_batches(mixture, spec, rank=rank, world_size=world_size),
        spec,
        first_step=first_step,
        method=method,
        measure=measure,
        on_step=on_step,
    )
    if log is not None:
        log.close()
    if rank == 0:
        _publish(model, spec, config)


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
    if not save:
        ray.train.report(metrics.known())
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "step": metrics.step,
            "adapter": {n: p.detach() for n, p in model.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "method": method.state_dict(),
        }
        torch.save(state, Path(folder) / "state.pt")
        ray.train.report(metrics.known(), checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(model: Any, optimizer: torch.optim.Optimizer, method: Method) -> int:
    """Load the newest checkpoint of this run, if any; return the steps already done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "state.pt", weights_only=True)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in state["adapter"].items():
            parameters[name].copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    method.load_state_dict(state.get("method", {}))
    return int(state["step"])


def _publish(model: Any, spec: FinetuneSpec | AlignSpec, config: dict[str, str]) -> None:
    """Write the result beside its place, then rename: a folder is whole or absent."""
    folder = Path(config["folder"])
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    save_trained(model, Path(config["base"]), scratch, output=spec.output)
    marker = {"spec": spec.resolved(), **json.loads(config["provenance"])}
    (scratch / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    scratch.rename(folder)
