"""``safemerge search``: the main job."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console, duration, resume_command
from safemerge.commands.stored import accept_records
from safemerge.commands.study import load_study, preflight, resolve_with
from safemerge.config.recipe import MergeRecipe
from safemerge.config.rung import RungSpec
from safemerge.config.study import StudySpec
from safemerge.errors import StudyError, UserError
from safemerge.records import CandidateResult, Front, TrialRecord
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse

    from safemerge.config.inputs import AskedRows
    from safemerge.distributed.background_training import Supply
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.search import SearchStudy
    from safemerge.search.retrain import Place


def run(options: argparse.Namespace) -> None:
    """Search, publish the front, write the report."""
    console = Console()
    spec = with_start_files(load_study(options.study), options.start)
    store = RunStore.under(options.results, spec.name)
    if options.dry_run:
        _dry_run(spec, store, console)
        return
    starts = [word for file in options.start for word in ("--start", file)]
    again = resume_command("search", options.study, options.results, starts)
    if options.new_data and (options.resume or options.accept_trials):
        raise UserError(
            "search: --new-data begins a new run; got it with --resume or --accept-trials, which "
            "continue one. Drop either."
        )
    if not (options.resume or options.new_data):
        instead = "begin a new one with --new-data (this one is kept beside)"
        store.refuse_existing(again=again, instead=instead)
    if options.accept_trials:
        accept_records(store, console)
    search(spec, store.folder, console, again=again, new_data=options.new_data)


def with_start_files(spec: StudySpec, files: Sequence[str]) -> StudySpec:
    """Return a study that also starts from other recipe files; one it has is not added again."""
    given = [str(Path(file).expanduser().resolve()) for file in files]
    return spec.model_copy(update={"start": list(dict.fromkeys([*spec.start, *given]))})


def search(
    spec: StudySpec, folder: Path, console: Console, *, again: str, new_data: bool = False
) -> None:
    """Run a study from ingredients to report.

    Args:
        spec: The study as declared.
        folder: Run folder; a run that it holds is continued.
        console: Where progress goes.
        again: Command that continues the run, for messages.
        new_data: Begin a new run; one that the folder holds is kept beside.
    """
    from safemerge.distributed.background_training import make_supply, placer, resolve_made
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.ingredient import Ingredients, fetch_hub_models
    from safemerge.distributed.inputs import with_inputs
    from safemerge.distributed.search import check_suites
    from safemerge.distributed.warm_start import read_starts, seen_by, with_starts
    from safemerge.search import SearchStudy, finished_trials

    RunStore(folder).check_disk()
    fetch_hub_models(spec.all_checkpoints)
    preflight(spec, console)
    starts = read_starts(spec)
    num_prompts = check_suites(spec, seen=seen_by(starts))
    console.say(f"study '{spec.name}': {spec.num_trials} recipes, {num_prompts} search prompts")
    try:
        with ExitStack() as stack:
            ingredients = Ingredients(say=console.say, on_step=console.training_step, stack=stack)
            needed = {name for start in starts for name in start.models.values()}
            resolved = with_starts(
                resolve_with(
                    spec, console, lambda: resolve_made(spec, ingredients, needed=needed)
                ),
                starts,
            )
            resolved, rows = with_inputs(resolved)
            store = _open_store(resolved, folder, console, rows=rows, new_data=new_data)
            stack.enter_context(ray_cluster())
            later = Ingredients(say=console.say, on_step=console.training_step, starts=False)
            supply = stack.enter_context(make_supply(spec, resolved, later))
            place = placer(spec, resolved, supply, later)
            study = stack.enter_context(SearchStudy(resolved, store, place=place))
            _search(study, console, supply, place)
    except KeyboardInterrupt:
        kept = finished_trials(RunStore.open(folder).trials()) if RunStore(folder).exists else []
        console.say(f"interrupted; {len(kept)} finished trials kept. Go on: {again}")
        raise
    _finish(folder, console)


def _open_store(
    spec: StudySpec, folder: Path, console: Console, *, rows: AskedRows, new_data: bool
) -> RunStore:
    """Find the run of a study and its inputs again, or begin it."""
    store = RunStore(folder)
    if store.exists and new_data:
        console.say(f"the run so far is kept as {store.set_aside()}")
    if not store.exists:
        return store.create(spec, rows=rows)
    store = RunStore.open(folder)
    store.check_same_study(spec, rows=rows)
    return store


def _search(study: SearchStudy, console: Console, supply: Supply, place: Place) -> None:
    from safemerge.distributed.background_training import make_lacking
    from safemerge.search import finished_trials, start_plans, study_references

    spec, finished = study.spec, finished_trials(study.records)
    if study.rebuilt is not None:
        study.store.log(study.rebuilt)
        console.say(study.rebuilt)
    if finished:
        console.say(f"resuming: {len(finished)} finished trials kept")
    else:
        for plan in start_plans(spec):
            console.say(plan.told)
    if spec.unmade and not study.done:
        where = "beside the evaluator" if supply.room.beside else "the evaluator gives way for it"
        console.say(
            f"still to be trained: {len(spec.unmade)} of {len(spec.variants)} variants, each once "
            f"a recipe needs it ({where}; at most {supply.room.at_once} at once)"
        )
    total = spec.num_trials + len(study_references(spec))
    total += len(spec.unmade) if spec.references else 0
    progress = _Progress(console, total, done=len(finished), spec=spec)
    make_lacking(study, supply, place)
    while not _round(study, console, supply, progress, place):
        console.say("evaluator gives way: training what recipes wait for")
        with progress.paused():
            supply.make_wanted()
            make_lacking(study, supply, place)


def _round(
    study: SearchStudy, console: Console, supply: Supply, progress: _Progress, place: Place
) -> bool:
    """Search with one evaluator; publish if the search is done. Return whether it is."""
    from safemerge.distributed.background_training import lacking_models
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.distributed.search import search_round

    spec = study.spec
    app = f"safemerge-{spec.name}"
    console.say(f"starting {spec.evaluator.min_replicas} evaluator replicas (about 30 to 60 s)")
    with Evaluator(spec, app=app) as evaluator:
        console.say("evaluator is up: searching")
        try:
            if not search_round(study, app=app, on_record=progress.record, supply=supply):
                return False
            if lacking_models(study, place):
                return False
            if study.covered and study.num_sampled < spec.num_trials:
                console.say(
                    f"every recipe of the search spaces was tried: {study.num_sampled}, within "
                    f"the budget of {spec.num_trials}; the search ends here"
                )
            publish(study.spec, study.store, evaluator, list(study.records), console)
        except KeyboardInterrupt:
            console.say("interrupted: shutting the evaluator down (Ctrl-C again: at once)")
            raise
    return True


def publish(
    spec: StudySpec,
    store: RunStore,
    evaluator: Evaluator,
    records: list[TrialRecord],
    console: Console,
) -> None:
    """Evaluate the front and the references on the report split and write ``front.json``."""
    from safemerge.distributed.search import evaluate_report_split
    from safemerge.reports import assemble_front, front_trials
    from safemerge.search import Drawn, is_covered

    complete = [record for record in records if record.state == "COMPLETE"]
    if not complete:
        reasons = sorted({record.reason or "" for record in records})
        raise StudyError(
            f"{store.folder}: no trial finished; first reason: {reasons[0] if reasons else '?'}"
        )
    front = front_trials(spec, complete)
    references = [record for record in complete if record.role == "reference"]
    wanted = list({record.number: record for record in [*front, *references]}.values())
    console.say(f"report split: {len(wanted)} candidates (front and references), held-out prompts")
    pace = _Pace(len(wanted))

    def on_result(trial: TrialRecord, result: CandidateResult) -> None:
        place, left = pace.step()
        console.say(f"{place} {trial.label}: {_objectives(spec, result)}{left}")

    results = evaluate_report_split(wanted, evaluator, on_result=on_result)
    published = assemble_front(spec, records, results, study_digest=store.study().digest)
    published = published.model_copy(update={"covered": is_covered(spec, Drawn.of(records))})
    if spec.rung is not None:
        published = _found_with(spec.rung, published)
    store.write_front(published)
    for point in published.points:
        store.write_recipe(point.number, point.recipe)


def _found_with(rung: RungSpec, front: Front) -> Front:
    """Name the rung's data in the front's recipes, so that no report is made on them."""
    from safemerge.data.seen import recorded

    seen = recorded(rung.prompt_sets)
    points = []
    for point in front.points:
        recipe = MergeRecipe.model_validate(point.recipe)
        recipe = recipe.model_copy(update={"seen": [*recipe.seen, *seen]})
        points.append(point.model_copy(update={"recipe": recipe.resolved()}))
    return front.model_copy(update={"points": points})


def _finish(folder: Path, console: Console) -> None:
    from rich.console import Console as RichConsole

    from safemerge.reports import front_table, load_run, write_report

    report = write_report(folder)
    run = load_run(folder)
    console.plain()
    width = max(100, shutil.get_terminal_size().columns)
    RichConsole(width=width).print(front_table(run))
    console.say(f"report: {report}")
    if run.front is not None and run.front.points:
        pick = "knee" if run.front.knee is not None else run.front.points[0].number
        console.say(f"next: safemerge export {folder} --pick {pick} OUT_DIR")


def _dry_run(spec: StudySpec, store: RunStore, console: Console) -> None:
    from safemerge.distributed.ingredient import known_folder, training_plan
    from safemerge.distributed.search import check_suites
    from safemerge.distributed.serving import check_resources, least_needs, machine_resources
    from safemerge.distributed.statistics import gathered_files
    from safemerge.distributed.warm_start import read_starts, seen_by
    from safemerge.weights.adapter import open_checkpoint

    store.check_disk()
    there = machine_resources()
    evaluator = spec.evaluator.placed(there["GPU"])
    needs = least_needs("evaluator", evaluator, spec.served_judges, spec.judge_service)
    check_resources(needs, there)
    found = preflight(spec, console)
    starts = read_starts(spec)
    num_prompts = check_suites(spec, seen=seen_by(starts))
    console.say(f"study '{spec.name}': {num_prompts} search prompts, splits disjoint")
    for wave in training_plan(spec.all_checkpoints):
        for stage in wave:
            console.say(f"would train unless cached: {stage.label}")
    for file in gathered_files(spec.all_checkpoints):
        console.say(f"would gather unless cached: statistics {file}")
    for start in starts:
        console.say(f"would start from '{start.name}': {start.file}")
    base = None
    for ref in spec.checkpoints:
        known = known_folder(ref)
        if known is None and ref.hub is not None:
            console.say(f"would download: '{ref.name}', {ref.origin} of the hub")
        if known is not None and (base is not None or ref is spec.base):
            opened = open_checkpoint(known, base)
            base = base or opened
            console.say(f"checkpoint '{ref.name}': {opened.num_parameters / 1e6:.0f} M parameters")
    for notice in found:
        console.say(f"note: {notice}")
    console.say("dry run: the study is sound; nothing was started")


class _Progress:
    """One line a finished trial, with the time that is left at this pace."""

    def __init__(self, console: Console, total: int, *, done: int, spec: StudySpec) -> None:
        self._console, self._spec = console, spec
        self._pace = _Pace(total, done=done)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the pace."""
        with self._pace.paused():
            yield

    def record(self, record: TrialRecord, study: object) -> None:
        place, left = self._pace.step()
        if record.result is None:
            told = f"{record.state}: {record.reason}"
        else:
            told = _objectives(self._spec, record.result)
            if not record.feasible:
                told += f"  infeasible: {record.reason}"
            told += f"  ({record.result.timings.total_s:.1f} s)"
        self._console.say(f"{place} {record.label}: {told}{left}")


class _Pace:
    """Counts what is done of a total and tells the time left at the pace of this command."""

    def __init__(self, total: int, *, done: int = 0) -> None:
        self._total, self._before, self._done = total, done, done
        self._started = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the pace."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began

    def step(self) -> tuple[str, str]:
        """Count one more; return e.g. ``[3/25]`` and ``, about 2 min 5 s left``."""
        self._done += 1
        timed, left = self._done - self._before, self._total - self._done
        seconds = (time.monotonic() - self._started) / timed * left
        about = f", about {duration(seconds)} left" if left > 0 else ""
        return f"[{self._done}/{max(self._total, self._done)}]", about


def _objectives(spec: StudySpec, result: CandidateResult) -> str:
    return "  ".join(f"{o.metric} {result.value(o.metric):.3f}" for o in spec.objectives)
