"""Searching merges of a study: ingredients, trials, front, report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.declared import StrPath, Study, as_study
from safemerge.api.page_server import served_page
from safemerge.api.place import driven_run
from safemerge.api.prepare import preflight, resolve_with
from safemerge.api.progress import Pace, Progress, Say
from safemerge.api.run import Run
from safemerge.api.state import Tally, Watch
from safemerge.api.stored import accept_records
from safemerge.config.recipe import MergeRecipe
from safemerge.config.rung import RungSpec
from safemerge.config.study import StudySpec
from safemerge.errors import StudyError, UserError
from safemerge.interrupt import Terminated
from safemerge.object_store import is_url, shown_url
from safemerge.records import CandidateResult, Front, TrialRecord
from safemerge.store import RunStore

if TYPE_CHECKING:
    from safemerge.config.inputs import AskedRows
    from safemerge.distributed.background_training import Supply
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.reports.live import LivePage
    from safemerge.reports.tracking import Tracking
    from safemerge.search import SearchStudy
    from safemerge.search.retrain import Place


def search(
    study: Study | StrPath,
    *,
    results: StrPath = "results",
    start: Iterable[StrPath] = (),
    resume: bool = False,
    new_data: bool = False,
    accept_trials: bool = False,
    progress: Say | None = None,
    watch: Watch | None = None,
    serve_report: int | None = None,
    again: str = "safemerge.search(..., resume=True)",
) -> Run:
    """Search merges of a study, publish the front and write the report.

    Ray Tune proposes, live engines behind Ray Serve answer; the Ray cluster that ``RAY_ADDRESS``
    names is joined, else a local one is started for the call. Ctrl-C (`KeyboardInterrupt`) keeps
    every finished trial.

    Args:
        study: A study, or its file.
        results: Folder of run folders; the run's is named after the study. Or a URL
            (``s3://``, ``gs://``, ``file://``): the run is stored below it while it grows, and
            continued from there on any machine.
        start: Recipe files to start from, beside those of the study's own ``start``.
        resume: Continue the run in the folder, if there is one; finished trials are kept.
        new_data: Begin a new run, e.g. because data or scoring changed; the one in the folder is
            kept beside, as ``STUDY.old-1``.
        accept_trials: Take the trials of the run as ``trials.jsonl`` has them now, though lines
            of it are gone, edited or added.
        progress: Called with lines of progress, e.g. `print`; the log if left out.
        watch: Called with a `safemerge.api.state.SearchState` when the search begins and after
            each trial.
        serve_report: Port on which the run's ``report.html`` is served to this machine alone
            while the search runs; 0 takes a free one, None serves nothing.
        again: How the run is continued, for messages.

    Returns:
        The finished run.

    Raises:
        UserError: If study, data, models or environment are wrong, or the folder holds a run and
            `resume` is not given.
        ObjectStoreError: If the URL cannot be asked; finished trials are kept on this machine.
        StudyError: If no trial finished, or the search ended early; finished trials are kept.
        TrainingError: If a model that had to be trained could not be.
    """
    spec = with_start_files(as_study(study).spec, start)
    if new_data and (resume or accept_trials):
        raise UserError(
            "search: new_data (--new-data) begins a new run; got it with resume or accept_trials, "
            "which continue one. Drop either."
        )
    if new_data and is_url(results):
        raise UserError(
            f"search: new_data (--new-data) renames a run's folder; got results at "
            f"{shown_url(str(results))}. Take another URL or another study name."
        )
    lines = Progress(progress)
    with driven_run(results, spec.name, lines) as store:
        if not (resume or new_data):
            instead = "begin a new one with new_data (--new-data; this one is kept beside)"
            if is_url(results):
                instead = "take another URL"
            store.refuse_existing(again=again, instead=instead)
        if accept_trials and store.exists:
            accept_records(store, lines)
        with ExitStack() as stack:
            if serve_report is not None:
                url = stack.enter_context(served_page(store.folder / "report.html", serve_report))
                lines.say(f"report: {url} while the search runs, on this machine alone")
            run_study(spec, store.folder, lines, again=again, new_data=new_data, watch=watch)
    return Run(store.folder)


def check_study(
    study: Study | StrPath, *, results: StrPath = "results", progress: Say | None = None
) -> None:
    """Check a study, its data and the checkpoints that exist, as `search` does; start nothing.

    Args:
        study: A study, or its file.
        results: Folder of run folders, which must be one that can be written, or a URL, which
            must be one that can be read.
        progress: Called with what was found.

    Raises:
        UserError: If study, data, models or environment are wrong.
    """
    spec = as_study(study).spec
    if is_url(results):
        from safemerge.remote_run import RemoteRun, join_url

        run = RemoteRun(join_url(str(results), spec.name))
        run.state()
        store = RunStore(run.folder)
    else:
        store = RunStore.under(results, spec.name)
    _dry_run(spec, store, Progress(progress))


def with_start_files(spec: StudySpec, files: Iterable[StrPath]) -> StudySpec:
    """Return a study that also starts from other recipe files; one it has is not added again."""
    given = [str(Path(os.fspath(file)).expanduser().resolve()) for file in files]
    return spec.model_copy(update={"start": list(dict.fromkeys([*spec.start, *given]))})


def run_study(
    spec: StudySpec,
    folder: Path,
    progress: Progress,
    *,
    again: str,
    new_data: bool = False,
    watch: Watch | None = None,
) -> None:
    """Run a study from ingredients to report.

    Args:
        spec: The study as declared.
        folder: Run folder; a run that it holds is continued.
        progress: Where progress goes.
        again: Command that continues the run, for messages.
        new_data: Begin a new run; one that the folder holds is kept beside.
        watch: Called with the state of the search after each trial.
    """
    from safemerge.reports import write_report
    from safemerge.reports.tracking import Tracking, check_trackers

    check_trackers(spec.tracking)
    with Tracking(spec.tracking, say=progress.say) as tracking:
        _run(spec, folder, progress, tracking, again=again, new_data=new_data, watch=watch)
        report = write_report(folder)
        tracking.publish(RunStore(folder).read_front(), report)


def _run(
    spec: StudySpec,
    folder: Path,
    progress: Progress,
    tracking: Tracking,
    *,
    again: str,
    new_data: bool,
    watch: Watch | None,
) -> None:
    from safemerge.distributed.background_training import make_supply, placer, resolve_made
    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.ingredient import Ingredients, fetch_hub_models
    from safemerge.distributed.inputs import with_inputs
    from safemerge.distributed.search import check_suites
    from safemerge.distributed.warm_start import read_starts, seen_by, with_starts
    from safemerge.search import SearchStudy, finished_trials

    RunStore(folder).check_disk()
    fetch_hub_models(spec.all_checkpoints)
    suites = preflight(spec, progress).suites
    starts = read_starts(spec)
    num_prompts = check_suites(spec, suites, seen=seen_by(starts))
    progress.say(f"study '{spec.name}': {spec.num_trials} recipes, {num_prompts} search prompts")
    try:
        with ExitStack() as stack:
            ingredients = Ingredients(
                say=progress.say, on_step=progress.training_step, stack=stack
            )
            needed = {name for start in starts for name in start.models.values()}
            resolved = with_starts(
                resolve_with(
                    spec, suites, progress, lambda: resolve_made(spec, ingredients, needed=needed)
                ),
                starts,
            )
            resolved, rows = with_inputs(resolved, suites)
            resolved = _with_sampler(resolved, folder, progress, new_data=new_data)
            store = _open_store(resolved, folder, progress, rows=rows, new_data=new_data)
            stack.enter_context(progress.also(store.log))
            stack.enter_context(ray_cluster())
            later = Ingredients(say=progress.say, on_step=progress.training_step, starts=False)
            supply = stack.enter_context(make_supply(spec, resolved, later))
            place = placer(spec, resolved, supply, later)
            study = stack.enter_context(SearchStudy(resolved, store, place=place))
            tracking.begin(store.folder, store.study())
            _search(study, progress, supply, place, watch, tracking)
    except KeyboardInterrupt:
        kept = finished_trials(RunStore.open(folder).trials()) if RunStore(folder).exists else []
        progress.say(f"interrupted; {len(kept)} finished trials kept. Resume: {again}")
        raise


def _with_sampler(
    spec: StudySpec, folder: Path, progress: Progress, *, new_data: bool
) -> StudySpec:
    from safemerge.search.storage import with_sampler

    store = RunStore(folder)
    stored = store.study().config if store.exists and not new_data else None
    settled, text = with_sampler(spec, stored)
    if text is not None:
        progress.say(text)
    return settled


def _open_store(
    spec: StudySpec, folder: Path, progress: Progress, *, rows: AskedRows, new_data: bool
) -> RunStore:
    """Find the run of a study and its inputs again, or begin it."""
    store = RunStore(folder)
    if store.exists and new_data:
        progress.say(f"the run so far is kept as {store.set_aside()}")
    if not store.exists:
        return store.create(spec, rows=rows)
    store = RunStore.open(folder)
    store.check_same_study(spec, rows=rows)
    return store


def _search(
    study: SearchStudy,
    progress: Progress,
    supply: Supply,
    place: Place,
    watch: Watch | None,
    tracking: Tracking,
) -> None:
    from safemerge.distributed.background_training import make_lacking
    from safemerge.reports.live import LivePage
    from safemerge.search import finished_trials, start_plans, study_references

    spec, finished = study.spec, finished_trials(study.records)
    if study.rebuilt is not None:
        progress.say(study.rebuilt)
    if finished:
        progress.say(f"resuming: {len(finished)} finished trials kept")
    else:
        for plan in start_plans(spec):
            progress.say(plan.summary)
    front = study.store.read_front()
    if front is not None and front.ended_by is not None and not study.done:
        # With a larger budget the search continues: what the old one ended is unfinished again.
        study.store.write_front(front.model_copy(update={"ended_by": None}))
    if spec.untrained and not study.done:
        where = "beside the evaluator" if supply.room.beside else "the evaluator pauses for it"
        progress.say(
            f"still to be trained: {len(spec.untrained)} of {len(spec.variants)} variants, each "
            f"once a recipe needs it ({where}; at most {supply.room.at_once} at once)"
        )
    total = spec.num_trials + len(study_references(spec))
    total += len(spec.untrained) if spec.references else 0
    page = LivePage(study.store.folder, study.store.study(), say=progress.say)
    trials = _Trials(
        progress, total, done=len(finished), study=study, page=page, watch=watch, tracking=tracking
    )
    make_lacking(study, supply, place)
    trials.show()
    try:
        while not _round(study, progress, supply, trials, place):
            progress.say("evaluator paused: training what recipes wait for")
            with trials.paused():
                supply.make_wanted()
                make_lacking(study, supply, place)
    except BaseException:
        page.stop(study.records)
        raise


def _round(
    study: SearchStudy, progress: Progress, supply: Supply, trials: _Trials, place: Place
) -> bool:
    """Search with one evaluator; publish if the search is done. Return whether it is."""
    from safemerge.distributed.background_training import lacking_models
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.distributed.search import search_round

    spec = study.spec
    app = f"safemerge-{spec.name}"
    progress.say(f"starting {spec.evaluator.min_replicas} evaluator replicas (about 30 to 60 s)")
    with ExitStack() as up:
        with trials.paused():
            evaluator = up.enter_context(Evaluator(spec, app=app))
        progress.say("evaluator is up: searching")
        try:
            if not search_round(study, app=app, on_record=trials.record, supply=supply):
                return False
            if lacking_models(study, place):
                return False
            end_round(study, evaluator, progress)
        except KeyboardInterrupt as interrupt:
            by_signal = isinstance(interrupt, Terminated)
            text = "ended by SIGTERM" if by_signal else "interrupted"
            hint = "" if by_signal else " (Ctrl-C again: at once)"
            progress.say(f"{text}: shutting the evaluator down{hint}")
            raise
    return True


def end_round(study: SearchStudy, evaluator: Evaluator, progress: Progress) -> None:
    """Say what ended a search that is done, and publish its front."""
    spec = study.spec
    ended_by = None
    if study.num_sampled < spec.num_trials and study.covered:
        progress.say(
            f"every recipe of the search spaces was tried: {study.num_sampled}, within "
            f"the budget of {spec.num_trials}; the search ends here"
        )
    elif study.num_sampled < spec.num_trials:
        ended_by = study.ended_by
    if ended_by is not None:
        progress.say(f"{ended_by}; the search ends here")
        study.store.log(f"the search ends: {ended_by}")
    records = list(study.records)
    publish(study.spec, study.store, evaluator, records, progress, ended_by=ended_by)


def publish(
    spec: StudySpec,
    store: RunStore,
    evaluator: Evaluator,
    records: list[TrialRecord],
    progress: Progress,
    *,
    ended_by: str | None = None,
) -> None:
    """Evaluate the front and the references on the report split and write ``front.json``."""
    from safemerge.distributed.search import evaluate_report_split
    from safemerge.reports import assemble_front, front_trials
    from safemerge.search import Drawn, is_covered
    from safemerge.search.posterior import believed_front

    complete = [record for record in records if record.state == "COMPLETE"]
    if not complete:
        reasons = sorted({record.reason or "" for record in records})
        raise StudyError(
            f"{store.folder}: no trial finished; first reason: {reasons[0] if reasons else '?'}"
        )
    found = believed_front(spec, records)
    belief = None if isinstance(found, str) else found
    if belief is None:
        front, text = front_trials(spec, complete), f"by observed values: {found}"
    else:
        front = [item for item in complete if item.number in belief.points]
        text = (
            f"by the posterior of {belief.front.evaluations} recipes; "
            f"{len(front)} have a fair chance of it"
        )
    progress.say(f"front: {text}")
    store.log(f"front: {text}")
    references = [record for record in complete if record.role == "reference"]
    wanted = list({record.number: record for record in [*front, *references]}.values())
    progress.say(
        f"report split: {len(wanted)} candidates (front and references), held-out prompts"
    )
    pace = Pace(len(wanted))

    def on_result(trial: TrialRecord, result: CandidateResult) -> None:
        place, left = pace.step()
        progress.say(f"{place} {trial.label}: {_objectives(spec, result)}{left}")

    results = evaluate_report_split(wanted, evaluator, on_result=on_result)
    digest = store.study().digest
    published = assemble_front(spec, records, results, study_digest=digest, belief=belief)
    covered = is_covered(spec, Drawn.of(records))
    published = published.model_copy(update={"covered": covered, "ended_by": ended_by})
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


def _dry_run(spec: StudySpec, store: RunStore, progress: Progress) -> None:
    from safemerge.distributed.ingredient import known_folder, training_plan
    from safemerge.distributed.search import check_suites
    from safemerge.distributed.serving import check_resources, least_needs, machine_resources
    from safemerge.distributed.statistics import gathered_files
    from safemerge.distributed.warm_start import read_starts, seen_by
    from safemerge.reports.tracking import check_trackers
    from safemerge.weights.adapter import open_checkpoint

    store.check_disk()
    check_trackers(spec.tracking)
    there = machine_resources()
    evaluator = spec.evaluator.placed(there["GPU"])
    needs = least_needs("evaluator", evaluator, spec.served_judges, spec.judge_service)
    check_resources(needs, there)
    notices, suites = preflight(spec, progress)
    starts = read_starts(spec)
    num_prompts = check_suites(spec, suites, seen=seen_by(starts))
    progress.say(f"study '{spec.name}': {num_prompts} search prompts, splits disjoint")
    for wave in training_plan(spec.all_checkpoints):
        for stage in wave:
            progress.say(f"would train unless cached: {stage.label}")
    for file in gathered_files(spec.all_checkpoints):
        progress.say(f"would gather unless cached: statistics {file}")
    for start in starts:
        progress.say(f"would start from '{start.name}': {start.file}")
    base = None
    for ref in spec.checkpoints:
        known = known_folder(ref)
        if known is None and ref.hub is not None:
            progress.say(f"would download: '{ref.name}', {ref.origin} of the hub")
        if known is not None and (base is not None or ref is spec.base):
            opened = open_checkpoint(known, base)
            base = base or opened
            progress.say(
                f"checkpoint '{ref.name}': {opened.num_parameters / 1e6:.0f} M parameters"
            )
    for notice in notices:
        progress.say(f"note: {notice}")
    progress.say("dry run: the study is sound; nothing was started")


class _Trials:
    """What is said and shown of trials: a line each, the page, the state for a live view."""

    def __init__(
        self,
        progress: Progress,
        total: int,
        *,
        done: int,
        study: SearchStudy,
        page: LivePage,
        watch: Watch | None,
        tracking: Tracking,
    ) -> None:
        self._say, self._study, self._page, self._watch = progress.say, study, page, watch
        self._tracking = tracking
        self._pace = Pace(total, done=done)
        self._tally = Tally(study.spec)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the pace."""
        with self._pace.paused():
            yield

    def show(self) -> None:
        """Bring page and live view up to date."""
        records = self._study.records
        self._page.offer(records)
        self._tally.count(records)
        if self._watch is not None:
            self._watch(self._tally.state(self._study.front(), self._pace))

    def record(self, record: TrialRecord, study: object) -> None:
        place, left = self._pace.step()
        spec = self._study.spec
        if record.result is None:
            outcome = f"{record.state}: {record.reason}"
        else:
            outcome = _objectives(spec, record.result)
            if not record.feasible:
                outcome += f"  infeasible: {record.reason}"
            outcome += f"  ({record.result.timings.total_s:.1f} s)"
        self._say(f"{place} {record.label}: {outcome}{left}")
        self._tracking.trial(record)
        self.show()


def _objectives(spec: StudySpec, result: CandidateResult) -> str:
    return "  ".join(f"{o.metric} {result.value(o.metric):.3f}" for o in spec.objectives)
