"""``safemerge robustness`` and `safemerge.robustness`: harmful fine-tuning, measured."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.api.declared import StrPath, declared
from safemerge.api.prepare import check_engine
from safemerge.api.progress import Progress, Say, duration
from safemerge.commands.console import Console, resume_command
from safemerge.config.base import digest
from safemerge.config.inputs import SCORING_VERSION
from safemerge.config.metric import suite_metrics
from safemerge.errors import ConfigError, StudyError
from safemerge.inputs import text_digests
from safemerge.robustness.cell_store import CellRecord, CellStore
from safemerge.robustness.spec import Cell, RobustnessSpec
from safemerge.robustness.worst_attack import WorstAttacks, write_worst_attacks

if TYPE_CHECKING:
    import argparse

    from safemerge.data.suite import LoadedSuite
    from safemerge.robustness.on_ray import CellJob, Hardening


class RobustnessRun(NamedTuple):
    """A finished measurement."""

    folder: Path
    """The run's folder, with ``robustness.json``."""
    report: Path
    """The report page."""
    cells: list[dict[str, Any]]
    """A flat record for each cell, for a table: ``cell``, ``method``, ``seed``, ``state``,
    ``reason``, then each metric by its full name with ``.low``, ``.high`` and ``.n``."""


def robustness(
    measurement: StrPath | Mapping[str, Any],
    *,
    results: StrPath = "results",
    seeds: Sequence[int] | None = None,
    resume: bool = False,
    dry_run: bool = False,
    progress: Say | None = None,
    again: str = "safemerge.robustness(..., resume=True)",
) -> RobustnessRun | None:
    """Attack hardened models by harmful fine-tuning, and measure what is left of their safety.

    Args:
        measurement: A file (``safemerge schema robustness``), or its keys as a mapping.
        results: Folder of run folders.
        seeds: Run these seeds of the file alone; all if left out.
        resume: Continue the measurement in the folder, if there is one; finished cells are kept.
        dry_run: Check everything and start nothing; None is returned.
        progress: Called with lines of progress, e.g. `print`; the log if left out.
        again: How the measurement is continued, for messages.

    Raises:
        UserError: If declaration, data or models are wrong, or the folder holds a measurement and
            `resume` is not given.
        StudyError: If cells failed; they are tried again when it is continued.
    """
    lines = Progress(progress)
    spec = _chosen(declared(measurement, RobustnessSpec, kind="robustness"), seeds)
    store = CellStore.under(results, spec.name)
    if not resume and not dry_run:
        store.refuse_existing(again=again)
    store.check_disk()
    check_engine(spec.evaluator)
    suites = _check(spec, lines)
    attacked = sum(cell.mode is not None for cell in spec.cells())
    lines.say(
        f"measurement '{spec.name}': {len(spec.cells())} cells, {attacked} of them attacks, "
        f"over {len(spec.seeds)} seeds"
    )
    if spec.attacker is not None:
        models = len(spec.methods) * len(spec.seeds)
        lines.say(
            f"attacker: {spec.attacker.num_trials} attacks on each of {models} models are searched"
        )
    if dry_run:
        lines.say("dry run: the measurement is sound; nothing was started")
        return None
    with store.locked():
        return _measure(spec, store.open(spec), suites, lines, again)


def run(options: argparse.Namespace) -> None:
    """Check everything, harden, attack cell by cell, write the report."""
    seeds = ["--seeds", *map(str, options.seeds)] if options.seeds else []
    robustness(
        options.spec,
        results=options.results,
        seeds=options.seeds,
        resume=options.resume,
        dry_run=options.dry_run,
        progress=Console().say,
        again=resume_command("robustness", options.spec, options.results, seeds),
    )


def _chosen(spec: RobustnessSpec, seeds: Sequence[int] | None) -> RobustnessSpec:
    if seeds is None:
        return spec
    unknown = sorted(set(seeds) - set(spec.seeds))
    if unknown:
        raise ConfigError(
            f"seeds: must be seeds of the file; got {unknown[0]}. "
            f"Seeds: {', '.join(map(str, spec.seeds))}."
        )
    return spec.model_copy(update={"seeds": [seed for seed in spec.seeds if seed in seeds]})


Suites = Mapping[str, Mapping[str, "LoadedSuite"]]
"""By split, then by name."""


def _check(spec: RobustnessSpec, progress: Progress) -> Suites:
    from safemerge.robustness.attack_data import check_attack_data
    from safemerge.robustness.on_ray import hardening_stages
    from safemerge.weights.adapter import open_checkpoint

    for ref in spec.checkpoints:
        if ref.path is not None:
            open_checkpoint(ref.path)
    return check_attack_data(spec, hardening_stages(spec), say=progress.say)


def _measure(
    spec: RobustnessSpec,
    store: CellStore,
    suites: Suites,
    progress: Progress,
    again: str,
) -> RobustnessRun:
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.robustness.on_ray import Hardening, run_cells

    try:
        with ray_cluster():
            hardening = Hardening(
                spec, store.folder, say=progress.say, on_step=progress.training_step
            )
            make = _jobs_of(spec, store, hardening)
            jobs = make(spec, spec.cells(), suites[spec.split])
            store.write_keys([job.key for job in jobs])
            done = {record.key for record in store.records() if record.state == "COMPLETE"}
            left = [job for job in jobs if job.key not in done]
            if len(left) < len(jobs):
                progress.say(f"resuming: {len(jobs) - len(left)} finished cells kept")
            cells = _Cells(progress, store, spec, len(jobs), done=len(jobs) - len(left))
            run_cells(spec, left, suites[spec.split], on_record=cells.record)
            if spec.attacker is not None:
                _attack(spec, store, suites, make, progress, again)
    except KeyboardInterrupt:
        progress.say(
            f"interrupted; {len(store.grid_records())} finished cells kept. Resume: {again}"
        )
        raise
    return _finish(store, progress, again)


MakeJobs = Callable[
    ["RobustnessSpec", Sequence["Cell"], Mapping[str, "LoadedSuite"]], list["CellJob"]
]
"""How cells are run, and the suites of one split, to what is run."""


def _jobs_of(spec: RobustnessSpec, store: CellStore, hardening: Hardening) -> MakeJobs:
    from safemerge.robustness.attack_data import attack_content, suite_content
    from safemerge.robustness.on_ray import CellJob, cell_key

    models = hardening.prepare()
    texts = {
        item.name: text_digests(Path(item.checkpoint.path))
        for item in spec.methods
        if item.checkpoint is not None and item.checkpoint.path is not None
    }
    scratch = store.folder.resolve() / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)

    def make(
        how: RobustnessSpec, cells: Sequence[Cell], suites: Mapping[str, LoadedSuite]
    ) -> list[CellJob]:
        rows = attack_content(how)
        contents = {name: suite_content(suite) for name, suite in suites.items()}
        jobs = []
        for cell in cells:
            hardened = models[cell.method, cell.seed]
            # How prompts are put and answers are scored counts too.
            scored = [SCORING_VERSION, texts.get(cell.method)]
            asked = {name: digest([content, scored]) for name, content in contents.items()}
            key = cell_key(how, cell, hardened, attack_content=rows, suite_content=asked)
            # Methods may share a model: each has its own cells.
            own = f"{cell.method}-{key}"
            jobs.append(CellJob(own, cell, hardened, scratch / own))
        return jobs

    return make


def _attack(
    spec: RobustnessSpec,
    store: CellStore,
    suites: Suites,
    make: MakeJobs,
    progress: Progress,
    again: str,
) -> None:
    """Search the worst attack on every model; what a killed search tried is not run again."""
    from safemerge.robustness.attacker import search_attacks, searched_spec
    from safemerge.robustness.on_ray import run_cells

    held = {
        record.key: record
        for record in (*store.records(), *store.attack_records())
        if record.state == "COMPLETE"
    }

    def run(cells: Sequence[Cell], split: str) -> list[CellRecord]:
        plain = searched_spec(spec)
        jobs = make(plain, cells, suites[split])
        left = [job for job in jobs if job.key not in held]
        ended = {}

        def record(item: CellRecord) -> None:
            store.append_attack(item)
            ended[item.key] = item
            if item.state == "COMPLETE":
                held[item.key] = item

        run_cells(plain, left, suites[split], on_record=record)
        found = [held.get(job.key) or ended[job.key] for job in jobs]
        for item in found:
            # Attacks of the search may fail; a model before, or under its worst attack, may not.
            is_reported = item.cell.mode is None or split == spec.split
            if is_reported and item.result is None:
                raise StudyError(
                    f"{item.cell.label}: must be measured; got: {item.reason}. It is tried again "
                    f"by `{again}`."
                )
        return found

    found = search_attacks(spec, run=run, say=progress.say)
    assert spec.attacker is not None, "asked for with an attacker only"
    bound = spec.attacker.max_utility_loss
    write_worst_attacks(store, WorstAttacks(max_utility_loss=bound, found=found))


class _Cells:
    """Stores each finished cell and tells it, with the time left at this pace."""

    def __init__(
        self, progress: Progress, store: CellStore, spec: RobustnessSpec, total: int, *, done: int
    ) -> None:
        self._say, self._store = progress.say, store
        self._shown = [row.name for row in suite_metrics(spec.suites).values() if row.is_main]
        self._total, self._before, self._done = total, done, done
        self._cut: set[str] = set()
        self._started = time.monotonic()

    def record(self, record: CellRecord) -> None:
        self._store.append(record)
        self._done += 1
        pace = (time.monotonic() - self._started) / (self._done - self._before)
        left = self._total - self._done
        about = f", about {duration(pace * left)} left" if left else ""
        self._say(f"[{self._done}/{self._total}] {cell_line(record, self._shown)}{about}")
        for words in record.cut_rows:
            if words not in self._cut:
                self._cut.add(words)
                self._say(f"{record.cell.label}: {words}")


def cell_line(record: CellRecord, shown: Sequence[str]) -> str:
    """Return a finished cell in one line, with the metrics that are shown."""
    if record.result is None:
        return f"{record.cell.label}: FAIL: {record.reason}"
    values = [
        f"{name} {record.result.value(name):.3f}"
        for name in shown
        if not math.isnan(record.result.value(name))
    ]
    broken = f"  broken: {record.result.broken}" if record.result.broken else ""
    seconds = record.train_s + record.evaluate_s
    return f"{record.cell.label}: {'  '.join(values)}{broken}  ({seconds:.0f} s)"


def _finish(store: CellStore, progress: Progress, again: str) -> RobustnessRun:
    from safemerge.robustness.page import write_robustness_report

    report = write_robustness_report(store.folder)
    progress.say(f"results: {store.folder / 'robustness.json'}")
    progress.say(f"report: {report}")
    failed = [record for record in store.grid_records() if record.state == "FAIL"]
    if failed:
        raise StudyError(
            f"{store.folder}: {len(failed)} cells failed; first: {failed[0].cell.label}: "
            f"{failed[0].reason}. They are tried again by `{again}`."
        )
    cells = [cell_record(item) for item in store.grid_records()]
    return RobustnessRun(store.folder, report, cells)


def cell_record(record: CellRecord) -> dict[str, Any]:
    """Return a finished cell as one flat record; see `RobustnessRun.cells`."""
    found: dict[str, Any] = {
        "cell": record.cell.label,
        "method": record.cell.method,
        "seed": record.cell.seed,
        "state": record.state,
        "reason": record.reason,
    }
    for name, estimate in ({} if record.result is None else record.result.metrics).items():
        found[name] = estimate.value
        found |= {f"{name}.{part}": getattr(estimate, part) for part in ("low", "high", "n")}
    return found
