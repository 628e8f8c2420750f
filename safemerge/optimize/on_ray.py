"""Data-aware optimisation on Ray Train, resumable, or over Serve replicas that score pairs."""

from __future__ import annotations

import asyncio
import io
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch

from safemerge.config.models import models_recipe
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.data.rows import load_training_samples
from safemerge.distributed.fit import cause_of, start_fit
from safemerge.distributed.serving import Application, EngineReplica, placed
from safemerge.distributed.train import POLL_S
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, Engine, Likelihood
from safemerge.engines.launch import start_engine
from safemerge.engines.precision import compute_dtype
from safemerge.errors import EngineError, MergeError, TrainingError
from safemerge.files import replace_file
from safemerge.merge.coefficient import check_groups
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.optimize.coefficient_search import (
    compared_recipes,
    make_scored_search,
    make_search,
)
from safemerge.optimize.coefficient_table import (
    CoefficientTable,
    coefficient_recipe,
    coefficient_table,
    first_values,
)
from safemerge.optimize.merged_model import MergedModel
from safemerge.optimize.objective import PairLosses
from safemerge.optimize.optimizer import (
    UNSCORABLE,
    CoefficientSearch,
    OptimizeStep,
    Score,
    Team,
    model_score,
)
from safemerge.optimize.pairs import SETS, PairSet, load_pairs
from safemerge.optimize.spec import CmaEs, GradientDescent, OptimizeSpec
from safemerge.training.device import claim_device
from safemerge.training.log import FollowedLog, MetricsLog
from safemerge.training.lora import check_adapters_base
from safemerge.weights.adapter import is_adapter
from safemerge.weights.hub import refs_on_this_node

RESULT_FILE = "result.json"
"""The recipe and the table of losses; a run folder without it is unfinished."""

CHECKPOINTS = "checkpoints"
"""Folder of the run's resumable checkpoints on Ray Train."""

STATE_FILE = "state.pt"
"""An optimiser's state; in the run folder itself where an evaluator scores."""

OnStep = Callable[[OptimizeStep, int], None]
"""Called with a step and the number of steps."""


def check_rows(spec: OptimizeSpec) -> None:
    """Read the declared data, before a model is looked at.

    Raises:
        DataError: If a source is unreadable or empty, or a template does not fit its columns.
    """
    for key in SETS:
        for index, item in enumerate(getattr(spec, key)):
            where = f"{spec.name}: {key}.{index}"
            load_training_samples(item, where=where, seed=spec.seed)


def check_optimization(
    spec: OptimizeSpec, *, say: Callable[[str], None] = lambda _: None
) -> CoefficientTable:
    """Check data and models against each other, before workers start.

    Args:
        spec: The optimisation, every checkpoint given by path.
        say: Called with a line for each set with rows that are cut.

    Returns:
        The coefficients that will be looked for.

    Raises:
        DataError: See `load_pairs`.
        CheckpointError: If a checkpoint cannot be read or is not finite.
        CheckpointMismatchError: If checkpoints disagree, an adapter is of another base, or an
            expert is the base itself.
        ConfigError: If a layer group matches no tensor.
    """
    base = Path(str(spec.base.path))
    for ref in spec.experts:
        folder = Path(str(ref.path))
        if is_adapter(folder):
            check_adapters_base(folder, base, where=f"{spec.name}, expert '{ref.name}'")
    resident = _open(spec, check=True)
    table = coefficient_table(spec, resident)
    if isinstance(spec.optimizer, GradientDescent | CmaEs):
        first = coefficient_recipe(spec, table, first_values(spec, table))
        check_groups(first, resident.base.distinct_names)
    for count in load_pairs(spec, ChatFormat(base, spec.chat)).cut:
        say(count.words)
    return table


def _open(spec: OptimizeSpec, *, check: bool) -> ResidentCheckpoints:
    recipe = models_recipe(spec.base, spec.experts, dtype=spec.dtype)
    # The model that is trained has the base's tensors, as an engine's has.
    return ResidentCheckpoints.open(recipe, check=check, for_engine=True)


def run_optimization(spec: OptimizeSpec, folder: Path, *, on_step: OnStep) -> dict[str, Any]:
    """Run an optimisation to its end, or resume one that was interrupted.

    Args:
        spec: The optimisation, every checkpoint given by path.
        folder: Run folder; it gets the metrics, the checkpoints and the result.
        on_step: Called with every new step of this run.

    Returns:
        The result: ``recipe``, and ``losses`` by name.

    Raises:
        TrainingError: If a worker failed; the checkpoints are kept.
        EngineError: If the declared evaluator failed; likewise.
    """
    if spec.evaluator is None:
        _run_on_workers(spec, folder, on_step)
    else:
        _run_on_evaluator(spec, folder, on_step)
    found: dict[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    return found


def _run_on_workers(spec: OptimizeSpec, folder: Path, on_step: OnStep) -> None:
    log = FollowedLog(folder)
    fit = start_fit(
        _optimize_worker,
        {"spec": spec.model_dump_json(by_alias=True), "folder": str(folder.resolve())},
        spec.workers,
        name=CHECKPOINTS,
        storage=folder.resolve(),
        num_to_keep=1,
    )
    done = False
    while not done:
        done = bool(wait([fit], timeout=POLL_S).done)
        _follow(log, on_step)
    if (error := fit.exception()) is not None:
        raise TrainingError(
            f"optimisation failed: {cause_of(error)} Checkpoints are kept: resume with --resume."
        ) from error


def _follow(log: FollowedLog, on_step: OnStep) -> None:
    for values in log.new():
        steps = int(values.pop("steps"))
        plain = {name: value for name, value in values.items() if "/" not in name}
        on_step(OptimizeStep(**plain), steps)


def _optimize_worker(config: dict[str, str]) -> None:
    """What every Ray Train worker runs."""
    from transformers import AutoModelForCausalLM

    spec = OptimizeSpec.model_validate_json(config["spec"])
    spec = spec.with_checkpoints(refs_on_this_node(spec.checkpoints))
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    team = Team(rank, world_size, torch.distributed.all_reduce if world_size > 1 else None)
    device = claim_device(spec.workers)
    base, folder = str(spec.base.path), Path(config["folder"])
    pairs = load_pairs(spec, ChatFormat(base, spec.chat))
    resident = _open(spec, check=False)
    table = coefficient_table(spec, resident)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=compute_dtype(spec.compute, device=device)
    )
    merged = MergedModel(model.to(device), resident, table, where=spec.name)
    score = model_score(spec, merged, pairs, team)
    search = make_search(spec, table, merged, pairs, score=score, team=team)
    first_step = _restore(search)
    log = MetricsLog(folder, done=first_step) if rank == 0 else None

    def on_step(found: OptimizeStep) -> None:
        if log is not None:
            log.write(_Logged(found, search.num_steps))
        # Only checkpoints are reported: Ray Train lets a worker wait until its report is taken.
        if _is_due(spec, search, found):
            _report(search, found, save=rank == 0)

    recipe, losses = _drive(spec, search, score, first_step=first_step, on_step=on_step)
    if log is not None:
        log.close()
        _write_result(folder, recipe, losses)


def _run_on_evaluator(spec: OptimizeSpec, folder: Path, on_step: OnStep) -> None:
    table = coefficient_table(spec, _open(spec, check=False))
    state = folder / STATE_FILE
    with PairEvaluator(spec) as evaluator:
        search = make_scored_search(spec, table, score=evaluator.score)
        first_step = _load(search, state) if state.exists() else 0
        log = MetricsLog(folder, done=first_step)

        def on_found(found: OptimizeStep) -> None:
            log.write(_Logged(found, search.num_steps))
            on_step(found, search.num_steps)
            content = io.BytesIO()
            torch.save({"step": found.step, "search": search.state_dict()}, content)
            replace_file(state, content.getvalue())

        recipe, losses = _drive(
            spec, search, evaluator.score, first_step=first_step, on_step=on_found
        )
    log.close()
    _write_result(folder, recipe, losses)


def _drive(
    spec: OptimizeSpec,
    search: CoefficientSearch,
    score: Score,
    *,
    first_step: int,
    on_step: Callable[[OptimizeStep], None],
) -> tuple[MergeRecipe, dict[str, PairLosses]]:
    """Take the steps that are left; return the recipe, and the losses it is compared by."""
    for step in range(first_step, search.num_steps):
        on_step(search.step(step))
    recipe = search.recipe()
    compared = compared_recipes(spec, recipe)
    return recipe, {name: score([other])[0] for name, other in compared.items()}


def _write_result(folder: Path, recipe: MergeRecipe, losses: Mapping[str, PairLosses]) -> None:
    text = {name: found._asdict() for name, found in losses.items()}
    document = {"recipe": recipe.resolved(), "losses": text}
    replace_file(folder / RESULT_FILE, json.dumps(document, indent=2) + "\n")


def _is_due(spec: OptimizeSpec, search: CoefficientSearch, found: OptimizeStep) -> bool:
    return found.step % spec.checkpoint_every == 0 or found.step == search.num_steps


class _Logged:
    """A step with the number of steps, for who follows the log."""

    def __init__(self, found: OptimizeStep, num_steps: int) -> None:
        self.step = found.step
        self._values = {**found.known(), "steps": num_steps}

    def known(self) -> dict[str, int | float]:
        return self._values


def _report(search: CoefficientSearch, found: OptimizeStep, *, save: bool) -> None:
    """Tell Ray Train of a checkpoint; all workers do so at the same steps, the first saves."""
    if not save:
        ray.train.report(found.known())
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {"step": found.step, "search": search.state_dict()}
        torch.save(state, Path(folder) / STATE_FILE)
        ray.train.report(found.known(), checkpoint=ray.train.Checkpoint.from_directory(folder))


def _restore(search: CoefficientSearch) -> int:
    """Load the newest checkpoint of this run, if any; return the steps already done."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        return _load(search, Path(folder) / STATE_FILE)


def _load(search: CoefficientSearch, path: Path) -> int:
    state = torch.load(path, weights_only=True)
    search.load_state_dict(state["search"])
    return int(state["step"])


DEPLOYMENT = "PairEvaluator"


class PairReplica(EngineReplica):
    """One replica: an engine, both sets tokenised, one recipe at a time.

    Args:
        spec: JSON of an optimisation whose checkpoints are resolved to paths.
    """

    def __init__(self, spec: str) -> None:
        declared = OptimizeSpec.model_validate_json(spec)
        self._evaluator = _declared(declared)
        super().__init__(self._evaluator, what="evaluator", request="a recipe")
        self._engine: Engine | None = None
        with self.starting():
            self._set_up(declared)

    def _set_up(self, declared: OptimizeSpec) -> None:
        self._spec = declared.with_checkpoints(refs_on_this_node(declared.checkpoints))
        pairs = load_pairs(self._spec, ChatFormat(str(self._spec.base.path), self._spec.chat))
        self._sets = pairs.sets
        self._asked = [continuations(item) for item in pairs.sets]
        self._engine = self._start_engine()

    def _start_engine(self) -> Engine:
        models = models_recipe(self._spec.base, self._spec.experts, dtype=self._spec.dtype)
        return start_engine(models, self._evaluator, cpu_ids=self.cpu_ids, in_process=True)

    async def losses(self, recipe: str) -> PairLosses:
        """Merge a recipe and score both sets.

        Args:
            recipe: JSON of a resolved recipe.

        Returns:
            Cross-entropies; infinite if the recipe cannot be merged or scored.

        Raises:
            EngineError: If the engine failed; it is rebuilt before the next recipe.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._losses, recipe)

    def _losses(self, recipe: str) -> PairLosses:
        with self.busy():
            return self._scored(MergeRecipe.model_validate_json(recipe))

    def _scored(self, candidate: MergeRecipe) -> PairLosses:
        try:
            if self._engine is None:
                self._engine = self._start_engine()
            self._engine.load(candidate)
            found = self._engine.loglikelihoods([item for part in self._asked for item in part])
        except MergeError:
            return UNSCORABLE
        except EngineError:
            self.close_engine()
            raise
        if any(likelihood.candidate != candidate.digest for likelihood in found):
            self.close_engine()
            raise EngineError(
                f"evaluator: texts must be scored by candidate {candidate.digest}; got another's "
                "log-probabilities."
            )
        first = len(self._asked[0])
        losses = PairLosses(
            mean_cross_entropy(self._sets[0], found[:first]),
            mean_cross_entropy(self._sets[1], found[first:]),
        )
        return losses if all(map(math.isfinite, losses)) else UNSCORABLE

    def close_engine(self) -> None:
        """End the engine; the next recipe starts another."""
        engine, self._engine = getattr(self, "_engine", None), None
        if engine is not None:
            engine.close()


def continuations(item: PairSet) -> list[Continuation]:
    """Return the answers of a set's rows, each after its prompt."""
    return [
        Continuation(
            sample_id=str(index),
            context_ids=row.sample.ids[: row.sample.num_prompt],
            continuation_ids=row.sample.ids[row.sample.num_prompt :],
        )
        for index, row in enumerate(item.rows)
    ]


def mean_cross_entropy(item: PairSet, found: Sequence[Likelihood]) -> float:
    """Return the mean over a set's rows of minus the log-probability a token, in nats.

    Args:
        item: The set.
        found: Its rows' likelihoods, in order.
    """
    return math.fsum(
        -row.share * likelihood.logprob / likelihood.num_tokens
        for row, likelihood in zip(item.rows, found, strict=True)
    )


class PairEvaluator(Application):
    """A running application of such replicas.

    Args:
        spec: An optimisation with an evaluator, checkpoints resolved to paths.

    Raises:
        PreflightError, EngineError: See `Application`.
    """

    def __init__(self, spec: OptimizeSpec) -> None:
        evaluator = placed(_declared(spec))
        spec = spec.model_copy(update={"evaluator": evaluator})
        super().__init__(
            PairReplica,
            spec.model_dump_json(by_alias=True),
            app=f"safemerge-optimize-{spec.name}",
            deployment=DEPLOYMENT,
            what="evaluator",
            evaluator=evaluator,
        )

    def score(self, recipes: Sequence[MergeRecipe]) -> list[PairLosses]:
        """Score recipes side by side over the replicas.

        A recipe whose replica crashed is tried again as often as the evaluator allows.

        Raises:
            EngineError: If an engine failed as often, or there is no answer in time.
        """
        asks = [
            partial(self._handle.losses.remote, recipe.model_dump_json(by_alias=True))
            for recipe in recipes
        ]
        pending = [ask() for ask in asks]
        limit = self._placed.timeout_s * len(recipes)
        return [
            PairLosses(*self.retried(ask, response, timeout_s=limit))
            for ask, response in zip(asks, pending, strict=True)
        ]


def _declared(spec: OptimizeSpec) -> EvaluatorSpec:
    assert spec.evaluator is not None, "replicas are for a declared evaluator"
    return spec.evaluator
