"""Statistics of models on data, gathered on Ray Train and kept by content digest."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
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
from safemerge.reports.wording import seconds
from safemerge.weights.adapter import is_adapter, open_checkpoint
from safemerge.weights.hub import on_this_node
from safemerge.weights.statistics import STATISTICS_FILE, ModelStatistics, save_statistics

_RUN, _SUMS, _PROGRESS = "gather", "sums", "progress"
"""In a run's work folder: Ray Train's files, the workers' partial sums, the share of rows done."""

_SAY_S = 10.0


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

    @property
    def work(self) -> Path:
        """Folder of the Ray Train run and of partial sums; removed when it has ended well."""
        return self.folder.with_name(f"{self.folder.name}.work")

    @property
    def config(self) -> dict[str, str]:
        """What a Ray Train worker needs to know of the run."""
        return {
            "spec": self.spec.model_dump_json(by_alias=True),
            "model": str(self.model),
            "base": str(self.base),
            "folder": str(self.folder),
            "work": str(self.work),
            "provenance": json.dumps(self.provenance),
        }


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
    refs: Sequence[CheckpointRef],
    *,
    say: Callable[[str], None],
    need_cluster: Callable[[], None],
) -> dict[str, CheckpointRef]:
    """Return references whose statistics are digested folders, by name; gather what is missing.

    Args:
        refs: Resolved references (path and digest), the base first.
        say: Called with one line of progress.
        need_cluster: Called before anything is gathered.

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
                text = ", ".join(run.spec.quantities)
                say(
                    f"{run.spec.name}: gathering {text} of '{ref.name}' on "
                    f"{run.spec.num_samples} rows (Ray Train)"
                )
                for words in run.provenance["cut_rows"]:
                    say(f"{run.spec.name}: {words}")
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
        need_cluster()
        gather_statistics(runs, say=say)
    return resolved


def _planned(ref: CheckpointRef, base: CheckpointRef) -> GatherRun:
    # What trains takes a second to import, and most merges read no statistics.
    from safemerge.training.batch import CutRows
    from safemerge.training.statistics import load_measured_rows, statistics_digest

    assert ref.statistics is not None, "asked only of models with statistics"
    spec = load_statistics_spec(str(ref.statistics.gather))
    rows = load_measured_rows(spec, ChatFormat(str(base.path), spec.chat))
    counted = CutRows.of("data", rows)
    fingerprints = {"model": str(ref.digest), "base": str(base.digest)}
    key = statistics_digest(spec, rows, **fingerprints)
    return GatherRun(
        spec,
        Path(str(ref.path)),
        Path(str(base.path)),
        statistics_folder(spec.name, key),
        {"digest": key, **fingerprints, "cut_rows": [counted.words] if counted.num_cut else []},
    )


def gather_statistics(runs: Sequence[GatherRun], *, say: Callable[[str], None]) -> None:
    """Measure models side by side as the cluster allows; needs one.

    A run that was interrupted resumes from its workers' partial sums.

    Args:
        runs: What to measure.
        say: Called with one line of progress.

    Raises:
        TrainingError: If a run failed; the others are finished first.
    """
    from safemerge.distributed.fit import cause_of, start_fit

    pending = []
    for run in runs:
        run.folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(run.work / _RUN, ignore_errors=True)
        workers = run.spec.workers
        fit = start_fit(_gather_worker, run.config, workers, name=_RUN, storage=run.work)
        pending.append((run, fit))
    failures = []
    for run, fit in pending:
        _follow(run, fit, say=say)
        error = fit.exception()
        if error is None:
            shutil.rmtree(run.work, ignore_errors=True)
        else:
            failures.append(f"{run.spec.name}: {cause_of(error)}")
    if failures:
        raise TrainingError(
            f"gathering statistics failed: {'; '.join(failures)}. What was gathered is kept: the "
            "same command resumes from it."
        )


def _follow(run: GatherRun, fit: Future[None], *, say: Callable[[str], None]) -> None:
    """Wait for a run and tell how far it is, by its first worker's count, every ten seconds."""
    first: tuple[float, float] | None = None
    while not wait([fit], timeout=_SAY_S).done:
        try:
            share = float((run.work / _PROGRESS).read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
        now = time.monotonic()
        started, before = first = first or (now, share)
        left = ""
        if share > before:
            remaining = (now - started) / (share - before) * (1 - share)
            left = f", about {seconds(remaining)} left"
        say(f"{run.spec.name} of {run.model.name}: {100 * share:.0f} % of the rows{left}")


def _gather_worker(config: dict[str, str]) -> None:
    """What every Ray Train worker runs."""
    import ray.train
    import torch

    from safemerge.training.device import claim_device
    from safemerge.training.partial_sums import PartialSums
    from safemerge.training.statistics import Gathering, load_measured_rows

    spec = StatisticsSpec.model_validate_json(config["spec"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = claim_device(spec.workers)
    base = on_this_node(config["base"])
    rows = load_measured_rows(spec, ChatFormat(base, spec.chat))
    several = torch.distributed.all_reduce if world_size > 1 else None

    work = Path(config["work"])
    places = range(rank, len(rows), world_size)
    total = len(places) * (1 + int("importance" in spec.quantities))

    def measured(
        part: str, folder: Path, quantities: Sequence[Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        model = load_model(folder, base, dtype=compute_dtype(spec.dtype, device=device))
        gathering = Gathering(model.to(device), spec, quantities)
        kept = PartialSums(work / _SUMS, part, rank=rank, world_size=world_size)
        before = 0 if part == "model" else len(places)
        for index in places[kept.restore(gathering) :]:
            gathering.add(rows[index], index=index)
            kept.save(gathering)
            if rank == 0:
                share = (before + gathering.num_rows) / total
                (work / _PROGRESS).write_text(f"{share:.4f}", encoding="ascii")
        kept.save(gathering, now=part == "model" and "importance" in spec.quantities)
        return gathering.finish(all_reduce=several)

    tensors, document = measured("model", on_this_node(config["model"]), spec.quantities)
    if "importance" in spec.quantities:
        of_base, _ = measured("base", base, ("importance",))
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
