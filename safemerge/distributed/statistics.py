"""Statistics of models on data, gathered on Ray Train and kept by content digest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safemerge.cache import cache_dir
from safemerge.config.checkpoint import CheckpointRef, StatisticsRef
from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe
from safemerge.config.statistics import StatisticsSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.precision import compute_dtype
from safemerge.errors import ConfigError, TrainingError
from safemerge.training.statistics import Gathering, load_measured_rows, statistics_digest
from safemerge.weights.adapter import is_adapter, open_checkpoint
from safemerge.weights.statistics import STATISTICS_FILE, ModelStatistics, save_statistics


@dataclass(frozen=True)
class GatherRun:
    """One model to measure."""

    spec: StatisticsSpec
    model: Path
    """Folder of the checkpoint, or of an adapter of the base."""
    base: Path
    """Folder of the recipe's base: its chat format, and its importance beside the model's."""
    folder: Path
    """Where the finished statistics go."""
    provenance: dict[str, Any]
    """Digests, written into the finished folder's document."""


def load_statistics_spec(path: str | Path) -> StatisticsSpec:
    """Read a statistics file, its relative paths taken from its own folder."""
    return load_document(path, StatisticsSpec).located(Path(path).parent)


def gathered_files(refs: Sequence[CheckpointRef]) -> list[str]:
    """Return the statistics files that checkpoints name, each once, sorted."""
    given = [ref.statistics for ref in refs if ref.statistics is not None]
    return sorted({item.gather for item in given if item.gather is not None})


def check_quantities(recipes: Iterable[MergeRecipe]) -> None:
    """Refuse statistics files that do not give what recipes read, before anything is gathered.

    Args:
        recipes: Recipes whose file references are located.

    Raises:
        ConfigError: If a file is wrong, or lacks a quantity.
    """
    for recipe in recipes:
        refs = {ref.name: ref for ref in recipe.checkpoints}
        for name, quantities in recipe.statistics_read().items():
            statistics = refs[name].statistics
            if statistics is None or statistics.gather is None:
                continue
            given = load_statistics_spec(statistics.gather).quantities
            for quantity in sorted(quantities - set(given)):
                raise ConfigError(
                    f"{statistics.gather}: quantities must hold {quantity}, which is read of "
                    f"'{name}'; got {', '.join(given)}. Add it."
                )


def statistics_folder(name: str, key: str) -> Path:
    """Return the cache folder of gathered statistics, whether it exists or not."""
    return cache_dir() / "statistics" / f"{name}-{key}"


def resolve_statistics(
    refs: Sequence[CheckpointRef], *, say: Callable[[str], None]
) -> dict[str, CheckpointRef]:
    """Return references whose statistics are digested folders, by name; gather what is missing.

    Args:
        refs: Resolved references (path and digest), the base first.
        say: Called with one line of progress.

    Raises:
        UserError: If a statistics file, its data, or a folder of statistics is wrong.
        TrainingError: If gathering failed.
    """
    base = refs[0]
    runs: list[GatherRun] = []
    resolved: dict[str, CheckpointRef] = {}
    for ref in refs:
        if ref.statistics is None:
            resolved[ref.name] = ref
            continue
        if ref.statistics.gather is None:
            folder = Path(str(ref.statistics.path))
            found = ModelStatistics(folder).digest
        else:
            run = _planned(ref, base)
            folder, found = run.folder, str(run.provenance["digest"])
            if (folder / STATISTICS_FILE).is_file():
                say(f"{run.spec.name} of '{ref.name}': cached ({folder.name})")
            elif folder not in [other.folder for other in runs]:
                told = ", ".join(run.spec.quantities)
                say(
                    f"{run.spec.name}: gathering {told} of '{ref.name}' on "
                    f"{run.spec.num_samples} rows (Ray Train)"
                )
                runs.append(run)
        if ref.statistics.digest not in (None, found):
            raise ConfigError(
                f"checkpoint '{ref.name}': statistics must have digest {ref.statistics.digest}; "
                f"got {found} in {folder}. Model, data or settings changed since the recipe was "
                "written."
            )
        statistics = StatisticsRef(path=str(folder), digest=found)
        resolved[ref.name] = ref.model_copy(update={"statistics": statistics})
    if runs:
        gather_statistics(runs)
    return resolved


def _planned(ref: CheckpointRef, base: CheckpointRef) -> GatherRun:
    assert ref.statistics is not None, "asked only of models with statistics"
    spec = load_statistics_spec(str(ref.statistics.gather))
    rows = load_measured_rows(spec, ChatFormat(str(base.path)))
    fingerprints = {"model": str(ref.digest), "base": str(base.digest)}
    key = statistics_digest(spec, rows, **fingerprints)
    return GatherRun(
        spec,
        Path(str(ref.path)),
        Path(str(base.path)),
        statistics_folder(spec.name, key),
        {"digest": key, **fingerprints},
    )


def gather_statistics(runs: Sequence[GatherRun]) -> None:
    """Measure models side by side as the cluster allows; needs one.

    Args:
        runs: What to measure.

    Raises:
        TrainingError: If a run failed; the others are finished first.
    """
    import ray

    from safemerge.distributed.train import cause_of

    # NOTE: fit() blocks, so each runs in a task of its own that needs no CPU.
    fit = ray.remote(num_cpus=0, max_retries=0)(_fit)
    pending = {}
    for run in runs:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        pending[run.spec.name, run.folder] = fit.remote(
            run.spec.model_dump_json(by_alias=True),
            str(run.model),
            str(run.base),
            str(run.folder),
            json.dumps(run.provenance),
        )
    failures = []
    for (name, _), reference in pending.items():
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            failures.append(f"{name}: {cause_of(error)}")
    if failures:
        raise TrainingError(
            f"gathering statistics failed: {'; '.join(failures)}. What was gathered is kept."
        )


def _fit(spec_json: str, model: str, base: str, folder: str, provenance: str) -> None:
    """Measure one model to the end (in a Ray task)."""
    import ray.train
    from ray.train.torch import TorchTrainer

    workers = StatisticsSpec.model_validate_json(spec_json).workers
    resources = {"CPU": workers.cpus_per_worker}
    if workers.gpus_per_worker:
        resources["GPU"] = workers.gpus_per_worker
    work = Path(folder).with_name(f"{Path(folder).name}.work")
    shutil.rmtree(work, ignore_errors=True)
    trainer = TorchTrainer(
        _gather_worker,
        train_loop_config={
            "spec": spec_json,
            "model": model,
            "base": base,
            "folder": folder,
            "provenance": provenance,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=workers.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=ray.train.RunConfig(name="gather", storage_path=str(work)),
    )
    trainer.fit()
    shutil.rmtree(work, ignore_errors=True)


def _gather_worker(config: dict[str, str]) -> None:
    """What every Ray Train worker runs."""
    import ray.train
    import torch

    from safemerge.training.device import claim_device

    spec = StatisticsSpec.model_validate_json(config["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = claim_device(spec.workers)
    base = Path(config["base"])
    rows = load_measured_rows(spec, ChatFormat(base))
    several = torch.distributed.all_reduce if world_size > 1 else None

    def measured(folder: Path, quantities: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        model = load_model(folder, base, dtype=compute_dtype(spec.dtype, device=device))
        gathering = Gathering(model.to(device), spec, quantities)
        for index in range(rank, len(rows), world_size):
            gathering.add(rows[index], index=index)
        return gathering.finish(all_reduce=several)

    tensors, document = measured(Path(config["model"]), spec.quantities)
    if "importance" in spec.quantities:
        of_base, _ = measured(base, ("importance",))
        tensors["base_importance"] = of_base["importance"]
    if rank == 0:
        document |= {
            "quantities": spec.quantities,
            "spec": spec.resolved(),
            **json.loads(config["provenance"]),
        }
        _publish(Path(config["folder"]), tensors, document)


def load_model(folder: Path, base: Path, *, dtype: Any) -> Any:
    """Return a checkpoint as a causal LM of transformers, an adapter merged into its base."""
    import torch
    from transformers import AutoModelForCausalLM

    if not is_adapter(folder):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    checkpoint = open_checkpoint(folder, open_checkpoint(base))
    parameters = model.state_dict()
    with torch.no_grad():
        for name in checkpoint.distinct_names:
            if name in parameters:
                parameters[name].copy_(checkpoint.tensor(name))
    return model


def _publish(folder: Path, tensors: dict[str, Any], document: dict[str, Any]) -> None:
    """Write the result beside its place, then rename: a folder is whole or absent."""
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_statistics(scratch, tensors, document)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
