"""The main job: ingredients, evaluator, search, report split, front."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.models import models_recipe, study_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.source import SeenData
from safemerge.config.study import StudySpec
from safemerge.data.suite import Suites
from safemerge.distributed.background_training import Supply, refuse_exhausted
from safemerge.distributed.contamination import check_report, check_study_rung
from safemerge.distributed.evaluator import Evaluator, candidates_at_once
from safemerge.distributed.scheduler import StudyScheduler
from safemerge.distributed.searcher import StudySearcher
from safemerge.distributed.trainable import CandidateTrainable
from safemerge.errors import StudyError
from safemerge.merge.candidate_tokenizer import tokenizer_models
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.merge.tokenizer_notice import tokenizer_notices
from safemerge.records import CandidateResult, TrialRecord
from safemerge.scratch import scratch_folder
from safemerge.search.study import SearchStudy
from safemerge.weights.adapter import is_adapter, open_checkpoint
from safemerge.weights.agreement import check_agreement
from safemerge.weights.notice import notices

CLOUD_KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)
"""No use to a trial's client, which asks replicas and stores nothing."""

TRIAL_MEMORY_BYTES = 50 * 1024**2
"""What a trial's client process reserves: no CPU, so that replicas may have them all."""


def check_models(spec: StudySpec) -> tuple[str, ...]:
    """Open and compare all models of a study that are folders, before anything is started.

    Experts still to be made are left out; where the base is, each is opened for itself.

    Args:
        spec: The study, resolved or not.

    Returns:
        What must be known of the models; see `ResidentCheckpoints.notices`.

    Raises:
        CheckpointError, CheckpointMismatchError: See `ResidentCheckpoints.open`.
    """
    models = study_models(spec)
    there = [ref for ref in models.experts if _is_there(ref)]
    if models.base.path is None:
        for ref in there:
            if ref.path is not None and not is_adapter(ref.path):
                open_checkpoint(ref.path)
        return ()
    if not there:
        base = open_checkpoint(models.base.path)
        check_agreement(base, {})
        return (*notices(base, {}), *tokenizer_notices(models))
    lacking = tokenizer_models(models) - {models.base.name, *(ref.name for ref in there)}
    own_order = models.vocabulary == "tokenizer" and lacking
    given = models_recipe(
        _with_statistics_there(models.base),
        [_with_statistics_there(ref) for ref in there],
        dtype=models.dtype,
        vocabulary="base" if own_order else models.vocabulary,
        tokenizer=None if lacking else models.tokenizer,
    )
    return ResidentCheckpoints.open(given, for_engine=True).notices


def _is_there(ref: CheckpointRef) -> bool:
    ends = (ref,) if ref.between is None else ref.between.ends
    return all(end.path is not None for end in ends)


def _with_statistics_there(ref: CheckpointRef) -> CheckpointRef:
    """Leave out statistics that are still to be gathered."""
    if ref.statistics is None or ref.statistics.path is not None:
        return ref
    return ref.model_copy(update={"statistics": None})


def check_suites(spec: StudySpec, suites: Suites, *, seen: Sequence[SeenData] = ()) -> int:
    """Check the report split and the rung against what the study's own stages are trained on.

    Args:
        spec: The study, located.
        suites: Its suites.
        seen: What the recipes that it starts from were found with.

    Returns:
        Prompts of the search split.

    Raises:
        DataError: See `safemerge.data.suite`.
    """
    check_report(spec.all_checkpoints, suites["report"], seen=seen)
    if spec.rung is not None:
        every = [*suites["search"], *suites["report"]]
        check_study_rung(spec.rung, spec.all_checkpoints, every, seen=seen)
    return sum(len(suite.samples) for suite in suites["search"])


def search_round(
    study: SearchStudy,
    *,
    app: str,
    on_record: Callable[[TrialRecord, SearchStudy], None],
    supply: Supply | None = None,
) -> bool:
    """Evaluate references and sampled recipes as far as a running evaluator can.

    Args:
        study: The study; what it has finished already is not evaluated again.
        app: Name of the running evaluator's Serve application.
        on_record: Called with every finished trial.
        supply: Trains ingredients that the study waits for; None if all exist.

    Returns:
        Whether the study's budget is spent. If not, ingredients must be trained and there is no
        room for it beside the evaluator: end that, call `Supply.make_wanted`, start another one
        for another round.

    Raises:
        UserError: If a checkpoint's file changed meanwhile; finished trials are stored.
        StudyError: If Tune ended early; finished trials are stored.
        TrainingError: If no ingredient can be trained.
    """
    if not study.done:
        _tune(study, app=app, on_record=on_record, supply=supply)
    if study.done:
        return True
    refuse_exhausted(supply)
    if supply is None or not supply.waiting:
        raise StudyError(
            f"{study.store.folder}: Tune must end when the budget of {study.spec.num_trials} "
            f"recipes is spent; got {len(study.records)} finished trials. Continue with --resume."
        )
    return False


def _tune(
    study: SearchStudy,
    *,
    app: str,
    on_record: Callable[[TrialRecord, SearchStudy], None],
    supply: Supply | None,
) -> None:
    spec = study.spec
    for name in ("ray.tune", "ray.tune.execution", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Tune copies cloud keys into each actor's environment, and Ray logs what it copies.
    ENV_VARS_TO_PROPAGATE.difference_update(CLOUD_KEYS)
    trainable = tune.with_parameters(
        CandidateTrainable,
        app=app,
        timeout_s=spec.evaluator.timeout_s,
        has_rung=spec.rung is not None,
    )
    # One more than the replicas take, so that none waits for the driver.
    at_once = spec.evaluator.max_replicas * candidates_at_once(spec) + 1
    searcher = StudySearcher(
        study,
        on_record=lambda record: on_record(record, study),
        supply=supply,
        at_once=at_once,
    )
    resources = tune.PlacementGroupFactory(
        [{"memory": TRIAL_MEMORY_BYTES}], **_beside_driver(at_once, _driver_node())
    )
    with scratch_folder("tune") as scratch:
        tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(clients=at_once, promote=searcher.promote),
                num_samples=-1,  # the searcher says when it is done
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(scratch),  # the run's folder is the state, not Tune's
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()
    searcher.refuse_wrong()


def _driver_node() -> tuple[str, float]:
    """Return the id of the driver's node, and the memory that it lets Ray give away, in bytes."""
    node_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            return node_id, float(node["Resources"].get("memory", 0.0))
    return node_id, 0.0


def _beside_driver(clients: int, node: tuple[str, float]) -> dict[str, Any]:
    """Say where Ray puts the clients: on the driver's node, as long as all of them fit there.

    They live as long as the search, so a node that holds one is never idle: the cluster's
    autoscaler would keep it when its replicas are gone. And a node that is lost takes none along.

    Args:
        clients: How many there are.
        node: Its id and memory; see `_driver_node`.
    """
    node_id, memory = node
    if clients * TRIAL_MEMORY_BYTES > memory:
        return {}
    return {"bundle_label_selector": [{"ray.io/node-id": node_id}]}


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
