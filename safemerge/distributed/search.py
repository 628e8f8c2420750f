"""The main job: ingredients, evaluator, search, report split, front."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence

from ray import tune

from safemerge.config.models import study_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.source import SeenData
from safemerge.config.study import StudySpec
from safemerge.data.suite import dropped_lines, load_suites
from safemerge.distributed.contamination import check_report, check_study_rung
from safemerge.distributed.evaluator import Evaluator, candidates_at_once
from safemerge.distributed.searcher import RungScheduler, StudySearcher
from safemerge.distributed.trainable import CandidateTrainable
from safemerge.errors import StudyError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.records import CandidateResult, TrialRecord
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore

TRIAL_MEMORY_BYTES = 50 * 1024**2
"""What a trial's client process reserves: no CPU, so that replicas may have them all."""


def check_models(spec: StudySpec) -> None:
    """Open and compare all checkpoints of a resolved study, before anything is started.

    Raises:
        CheckpointError, CheckpointMismatchError: See `ResidentCheckpoints.open`.
    """
    ResidentCheckpoints.open(study_models(spec), for_engine=True)


def check_suites(
    spec: StudySpec,
    *,
    seen: Sequence[SeenData] = (),
    say: Callable[[str], None] | None = None,
) -> int:
    """Load every suite, check the splits and what the study's own stages are trained on.

    Args:
        spec: The study, located.
        seen: What the recipes that it starts from were found with.
        say: Called with a line for each suite that rows are left out of.

    Returns:
        Prompts of the search split.

    Raises:
        DataError: See `safemerge.data.suite`.
    """
    suites = load_suites(spec)
    if say is not None:
        for line in dropped_lines(spec.suites, suites):
            say(line)
    check_report(spec.all_checkpoints, suites["report"], seen=seen)
    if spec.rung is not None:
        every = [*suites["search"], *suites["report"]]
        check_study_rung(spec.rung, spec.all_checkpoints, every, seen=seen)
    return sum(len(suite.samples) for suite in suites["search"])


def run_search(
    spec: StudySpec,
    store: RunStore,
    evaluator: Evaluator,
    *,
    app: str,
    on_record: Callable[[TrialRecord, SearchStudy], None],
) -> list[TrialRecord]:
    """Evaluate references and sampled recipes until the study's budget is spent.

    Args:
        spec: Study with resolved checkpoints.
        store: The run's folder; a study that it holds is continued.
        evaluator: Running evaluator.
        app: Its Serve application's name.
        on_record: Called with every finished trial.

    Returns:
        All finished trials, those of earlier runs included.

    Raises:
        StudyError: If Tune ended early; finished trials are stored.
    """
    with SearchStudy(spec, store) as study:
        if not study.done:
            _tune(spec, study, app=app, on_record=on_record)
        if not study.done:
            raise StudyError(
                f"{store.folder}: Tune must end when the budget of {spec.num_trials} recipes is "
                f"spent; got {len(study.records)} finished trials. Continue with --resume."
            )
        return list(study.records)


def _tune(
    spec: StudySpec,
    study: SearchStudy,
    *,
    app: str,
    on_record: Callable[[TrialRecord, SearchStudy], None],
) -> None:
    for name in ("ray.tune", "ray.tune.execution", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainable = tune.with_parameters(
        CandidateTrainable,
        app=app,
        timeout_s=spec.evaluator.timeout_s,
        has_rung=spec.rung is not None,
    )
    searcher = StudySearcher(study, on_record=lambda record: on_record(record, study))
    resources = tune.PlacementGroupFactory([{"memory": TRIAL_MEMORY_BYTES}])
    with tempfile.TemporaryDirectory(prefix="safemerge-tune-") as scratch:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=None if spec.rung is None else RungScheduler(searcher.promote),
                num_samples=-1,  # the searcher says when it is done
                # One more than the replicas take, so that none waits for the driver.
                max_concurrent_trials=spec.evaluator.max_replicas * candidates_at_once(spec) + 1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,  # the run's folder is the state, not Tune's
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


def evaluate_report_split(
    trials: list[TrialRecord],
    evaluator: Evaluator,
    *,
    on_result: Callable[[TrialRecord, CandidateResult], None],
) -> dict[str, CandidateResult]:
    """Evaluate trials on the held-out split, side by side over the replicas.

    Args:
        trials: COMPLETE trials; equal candidates are evaluated once.
        evaluator: Running evaluator.
        on_result: Called with each trial and its result, in order.

    Returns:
        Result by candidate digest.
    """
    unique = {trial.candidate: trial for trial in trials}
    recipes = [MergeRecipe.model_validate(trial.recipe) for trial in unique.values()]
    results = {}
    for trial, result in zip(unique.values(), evaluator.score_all(recipes, "report"), strict=True):
        results[trial.candidate] = result
        on_result(trial, result)
    return results
