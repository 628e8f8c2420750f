"""A study: ingredients, search spaces, suites, objectives, budget, evaluator."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, JsonValue, ValidationError, model_validator

from safemerge.config.base import CONTENT, FREE, LATER, StrictModel
from safemerge.config.budget import BudgetSpec
from safemerge.config.chat import ONLY_DATED, DatedChatArguments
from safemerge.config.checkpoint import CheckpointRef, Name, Setting, Vocabulary
from safemerge.config.dotted_path import set_path
from safemerge.config.engine_arguments import argument_problems
from safemerge.config.inputs import StudyInputs
from safemerge.config.judge import JudgeServiceSpec, ModelJudge, gpu_problems
from safemerge.config.location import located_path
from safemerge.config.metric import Direction, Metric, Role, measured_metrics
from safemerge.config.problems import did_you_mean, problem_lines
from safemerge.config.range import FloatRange, Range
from safemerge.config.recipe import LayerGroup, MergeRecipe, Method, Step, changed_models
from safemerge.config.rung import RungSpec
from safemerge.config.sampler import SamplerSpec
from safemerge.config.sense import sense_problems
from safemerge.config.suite import SuiteSpec
from safemerge.config.tokenizer import TokenizerChoice
from safemerge.config.variant import (
    ExpertVariant,
    declared_variants,
    training_path,
    training_problems,
)
from safemerge.config.warm_start import WarmStart


class SearchSpace(StrictModel):
    """A template recipe plus the ranges of the values that vary.

    Paths in `vary` are dotted from the recipe, e.g. ``method.weights.math`` or
    ``method.lambda``; list members are addressed by name, anchors by their place from 0 on
    (``method.weights.math.0``). ``experts.<name>.<path>`` leads into the training file of an
    expert, e.g. ``experts.aligned.booster.lambda``: each of its values is a model to train, so
    there must be `choices`, a `step`, or `knots`.
    """

    name: Name
    method: Method
    steps: list[Step] = Field(default_factory=list)
    """Safety operators; their numbers may vary too, e.g. ``steps.resta.scale``."""
    layer_groups: list[LayerGroup] = Field(default_factory=list)
    vary: dict[str, Range] = Field(min_length=1)
    """Range by dotted path; the path must exist in the template, or in a training file."""

    def training_grid(self) -> dict[str, tuple[Setting, ...]]:
        """Return every value of the paths that lead into training files."""
        return {
            path: values.grid() or ()
            for path, values in self.vary.items()
            if training_path(path) is not None
        }


def _without_default(schema: dict[str, Any]) -> None:
    """Drop a default that stands for another field's meaning."""
    schema.pop("default", None)


class Objective(StrictModel):
    """A metric that the search improves."""

    metric: str
    """``suite.metric``, or the name of an aggregate."""
    direction: Direction = Field(default="minimize", json_schema_extra=_without_default)
    """Left out: the metric's own."""
    reference: float = Field(default=0.0, json_schema_extra=_without_default)
    """The hypervolume's reference value: worse than any point worth keeping. Left out: the worst
    value of a metric that is a share."""
    allow: list[Literal["direction"]] = Field(
        default_factory=list, exclude_if=lambda given: not given
    )
    """What looks like a mistake and is meant: ``direction``, against the metric's own."""

    def completed(self, row: Metric | None) -> Objective:
        """Return a copy with what was left out, by the metric's row."""
        given, found = self.model_fields_set, dict[str, Any]()
        if row is not None and "direction" not in given:
            found["direction"] = row.direction
        if row is not None and row.range is not None and "reference" not in given:
            way = found.get("direction", self.direction)
            found["reference"] = row.range[0 if way == "maximize" else 1]
        return self.model_copy(update=found) if found else self


class Constraint(StrictModel):
    """A metric with a budget; a candidate beyond it is infeasible."""

    metric: str
    budget: float
    """Largest value allowed (smallest, if `direction` is maximize)."""
    direction: Direction = Field(default="minimize", json_schema_extra=_without_default)
    """Left out: the metric's own."""
    allow: list[Literal["direction"]] = Field(
        default_factory=list, exclude_if=lambda given: not given
    )
    """As in `Objective`."""

    def completed(self, row: Metric | None) -> Constraint:
        """Return a copy with what was left out, by the metric's row."""
        if row is None or "direction" in self.model_fields_set:
            return self
        return self.model_copy(update={"direction": row.direction})


class Aggregate(StrictModel):
    """The plain mean of several metrics that improve the same way."""

    mean_of: list[str] = Field(min_length=1)
    role: Annotated[Role | None, FREE] = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """What the mean is about; left out, what all of its parts are about. A mean of parts with
    several roles has none, unless it is named here: ``--pick safest``, say, cannot mean it."""


ModelPlace = Literal["mapped", "pinned", "device"]
"""Where base and experts wait between candidates of a GPU; see `EvaluatorSpec.models`."""


class EvaluatorSpec(StrictModel):
    """The Ray Serve evaluator: its replicas and their engines."""

    engine: Literal["vllm", "transformers"] = "vllm"
    """``transformers`` is the slow reference engine, for checking."""
    min_replicas: Annotated[int, FREE] = Field(default=1, ge=1)
    max_replicas: Annotated[int, FREE] = Field(default=1, ge=1)
    """Replicas scale between the two on queue length; each owns one engine."""
    upscale_delay_s: Annotated[float, FREE] = Field(default=5.0, ge=0)
    """How long candidates wait before another replica is started, in seconds."""
    downscale_delay_s: Annotated[float, FREE] = Field(default=120.0, ge=0)
    """How long a replica is not needed before it is stopped, in seconds; a candidate that it
    answers is finished. Longer than an engine takes to start, or replicas come and go."""
    cpus_per_replica: Annotated[float, FREE] = Field(default=1.0, gt=0)
    gpus_per_replica: Annotated[float | None, FREE] = Field(default=None, ge=0)
    """Left out: one for each of `tensor_parallel_size` where the cluster has GPUs, else none."""
    tensor_parallel_size: Annotated[int, FREE] = Field(default=1, ge=1)
    """GPUs (or CPU shares) that one engine spans."""
    max_model_len: int = Field(default=1024, ge=16)
    """Longest prompt plus answer, in tokens."""
    max_num_seqs: Annotated[int, FREE] = Field(default=64, ge=1)
    """Prompts in flight in one engine."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Engine's weight type. ``auto``: the base's on GPUs; on CPUs bfloat16 where the processor
    multiplies it natively, else float32 (bf16 without AVX512-BF16 runs about ten times
    slower)."""
    kv_cache_gib: Annotated[float, FREE] = Field(default=1.0, gt=0)
    """KV cache on CPUs, GiB a replica."""
    gpu_memory_utilization: Annotated[float, FREE] = Field(default=0.85, gt=0, le=1)
    models: Annotated[ModelPlace, FREE] = "mapped"
    """Where base and experts wait between candidates of an engine on a GPU: ``mapped`` files,
    ``pinned`` host memory (copied to the GPU faster; takes their size of host memory a replica)
    or on the ``device`` (not copied at all; takes their size beside the engine: lower
    `gpu_memory_utilization`). On CPUs they are always mapped."""
    timeout_s: Annotated[float, FREE] = Field(default=1800.0, gt=0)
    """Longest time for one candidate before the replica counts as stuck; on the low rung as
    long again."""
    max_unscored: Annotated[float, FREE] = Field(default=0.02, ge=0, le=1)
    """Largest share of unscored responses in a suite before a trial fails."""
    num_retries: Annotated[int, FREE] = Field(default=1, ge=0)
    """How often a candidate whose replica crashed is tried again on another."""
    engine_arguments: dict[str, JsonValue] = Field(
        default_factory=dict, exclude_if=lambda given: not given
    )
    """vLLM's own engine arguments under vLLM's names, e.g. ``{max_num_batched_tokens: 8192}``.
    They may change answers, and so make another study."""

    @model_validator(mode="after")
    def _replicas(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas must not exceed max_replicas; "
                f"got {self.min_replicas} and {self.max_replicas}."
            )
        problems = list(argument_problems(self.engine, self.engine_arguments))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def placed(self, gpus: float) -> Self:
        """Return a copy that says how many GPUs a replica takes.

        Args:
            gpus: GPUs of the cluster.
        """
        if self.gpus_per_replica is not None:
            return self
        taken = float(self.tensor_parallel_size) if gpus else 0.0
        return self.model_copy(update={"gpus_per_replica": taken})

    @property
    def replica_needs(self) -> dict[str, float]:
        """CPUs and GPUs of one replica, by Ray's names; no GPUs unless `placed` or declared."""
        return {"CPU": self.cpus_per_replica, "GPU": self.gpus_per_replica or 0.0}


class StudySpec(StrictModel):
    """A search for merges: the file that `safemerge search` takes."""

    name: Name
    seed: int = Field(default=0, ge=0, lt=2**32)
    base: CheckpointRef
    experts: list[CheckpointRef] = Field(min_length=1)
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Type that merged weights are rounded to, so that the scored weights are the exported."""
    vocabulary: Vocabulary = "refuse"
    """As in a recipe; an engine keeps the base's shape, so that a ``union`` must fit into it."""
    tokenizer: TokenizerChoice = Field(
        default_factory=TokenizerChoice, exclude_if=lambda choice: choice.is_default
    )
    """As in a recipe: prompts of every candidate are written with this tokenizer and template."""
    spaces: list[SearchSpace] = Field(min_length=1)
    chat: DatedChatArguments = Field(default=ONLY_DATED)
    """Arguments of the base's chat template, e.g. ``{enable_thinking: false}``, for every prompt;
    ``date`` is the day that templates may read, whatever the clock says."""
    suites: list[SuiteSpec] = Field(min_length=1)
    aggregates: dict[str, Aggregate] = Field(default_factory=dict)
    objectives: list[Objective] = Field(min_length=1)
    constraints: list[Constraint] = Field(default_factory=list)
    num_trials: Annotated[int, FREE] = Field(ge=1)
    """Sampled recipes, those for warm starts among them; reference points (parents, plain mean,
    warm starts that no space expresses) come on top."""
    budget: Annotated[BudgetSpec | None, FREE] = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """What ends the search before `num_trials`, if that is reached first."""
    references: bool = True
    """Evaluate every parent and the plain mean first."""
    front: Annotated[Literal["posterior", "observed"], FREE] = "posterior"
    """What the published front is chosen by: the ``posterior`` of a Gaussian process over all
    scored recipes (needs BoTorch and a dozen of them, else as ``observed``), or the values as
    observed, of which the luckiest are published."""
    rung: RungSpec | None = Field(default=None, exclude_if=lambda given: given is None)
    """Losses on pairs that sampled recipes are scored on first, in one forward pass; clear losers
    are pruned there."""
    start: Annotated[list[str], CONTENT] = Field(default_factory=list)
    """Recipe files to start from, e.g. of `safemerge optimize`, taken from the study's folder.
    Each, or what a space can say that is nearest to it, is among the first sampled recipes; one
    that no space can express exactly is a reference point too."""
    sampler: SamplerSpec = Field(default_factory=SamplerSpec)
    storage: Annotated[Literal["memory", "sqlite", "journal"], FREE] = "memory"
    """Where Optuna's study lives. ``memory``: it is rebuilt from ``trials.jsonl``; ``study.db`` is
    written now and then, and at the end, for optuna-dashboard. ``sqlite``: in ``study.db``, at
    each step, some 20 ms of CPU a trial. ``journal``: in ``study.journal``, at each step."""
    tracking: Annotated[list[Literal["tensorboard", "mlflow", "wandb"]], FREE] = Field(
        default_factory=list, exclude_if=lambda names: not names
    )
    """Trackers that trials, front and report go to; into ``tracking/`` of the run's folder, or
    where ``MLFLOW_TRACKING_URI`` and ``WANDB_MODE`` say."""
    evaluator: EvaluatorSpec = Field(default_factory=EvaluatorSpec)
    judge_service: Annotated[JudgeServiceSpec, FREE] = Field(default_factory=JudgeServiceSpec)
    """Where judges with ``placement: service`` run."""
    trained: Annotated[list[CheckpointRef], LATER] = Field(default_factory=list)
    """Written by safemerge into resolved studies: what it trained for `variants`, in order."""
    untrained: Annotated[list[Name], FREE] = Field(
        default_factory=list,
        exclude_if=lambda names: not names,
        validation_alias=AliasChoices("untrained", "unmade"),  # "unmade": runs before 0.3
    )
    """Written by safemerge into resolved studies: which of `trained` are not trained yet. Their
    path is the folder that will hold them."""
    started: Annotated[list[WarmStart], CONTENT] = Field(default_factory=list)
    """Written by safemerge into resolved studies: what `start` names, over the study's models."""
    inputs: Annotated[StudyInputs | None, CONTENT] = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Written by safemerge into resolved studies: digests of what they read, so that a process
    that starts later reads the same."""

    @model_validator(mode="after")
    def _names_and_metrics(self) -> Self:
        rows = measured_metrics(self.suites, self.aggregates)
        # NOTE: frozen for others; this is still the making of it.
        self.__dict__["objectives"] = [it.completed(rows.get(it.metric)) for it in self.objectives]
        self.__dict__["constraints"] = [
            it.completed(rows.get(it.metric)) for it in self.constraints
        ]
        problems = [
            *(
                f"objectives.{index}.reference: required key is missing, for {goal.metric} has no "
                "worst value. Add it."
                for index, goal in enumerate(self.objectives)
                if goal.metric in rows and "reference" not in goal.model_fields_set
            ),
            *_repeated("checkpoint names", [item.name for item in self.all_checkpoints]),
            *_repeated("suite names", [suite.name for suite in self.suites]),
            *_repeated("space names", [space.name for space in self.spaces]),
            *_repeated("objectives' metrics", [item.metric for item in self.objectives]),
            *gpu_problems(
                [judge for suite in self.suites for judge in suite.judges],
                self.judge_service,
                self.evaluator.gpus_per_replica,
            ),
        ]
        known = list(measured_metrics(self.suites, {}))
        for name, aggregate in self.aggregates.items():
            for metric in aggregate.mean_of:
                problems += _unknown_metric(f"aggregates.{name}.mean_of", metric, known)
            if name in known:
                problems.append(f"aggregates.{name}: the name is taken by a suite's metric.")
        known += list(self.aggregates)
        for index, objective in enumerate(self.objectives):
            problems += _unknown_metric(f"objectives.{index}.metric", objective.metric, known)
        for index, constraint in enumerate(self.constraints):
            problems += _unknown_metric(f"constraints.{index}.metric", constraint.metric, known)
        problems += [
            f"{ref.name}: a model of a study must be in one folder, which engines start from; got "
            f"'{'on' if ref.stack is None else 'stack'}', a model made of others. Write it with "
            "'safemerge merge', then name its folder."
            for ref in self.checkpoints
            if ref.on is not None or ref.stack is not None
        ]
        problems += sense_problems(self.suites, self.aggregates, self.objectives, self.constraints)
        chosen = list(
            self.tokenizer.problems([item.name for item in self.checkpoints], self.vocabulary)
        )
        problems += chosen or [
            problem for space in self.spaces for problem in self._space_problems(space)
        ]
        if self.rung is not None and len(self.rung.sets) < min(2, len(self.objectives)):
            problems.append(
                f"rung.sets: {len(self.objectives)} objectives need at least 2 sets; got 1. One "
                "loss would prune whatever trades it for the other objective. Add a set."
            )
        expects = self.sampler.use is None and self.sampler.name in ("auto", "bayesian")
        if self.budget is not None and self.budget.expected_gain is not None and not expects:
            problems.append(
                "budget.expected_gain: needs the Bayesian sampler, which alone says what it "
                f"expects; got {self.sampler.use or self.sampler.name}. Take "
                "budget.hypervolume_plateau, or sampler.name bayesian."
            )
        if self.rung is not None and self.sampler.synchronous:
            problems.append(
                "sampler.synchronous: must be false with rung, where what is pruned depends on "
                "which rival is finished; got true. Drop one."
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _space_problems(self, space: SearchSpace) -> list[str]:
        """Make every range's ends into recipes, so that an illegal corner fails at load."""
        where = f"spaces.{space.name}"
        try:
            template = self.template(space)
        except ValidationError as error:
            return [f"{where}: {line}" for line in problem_lines(error, MergeRecipe, None)]
        problems = list(
            training_problems(where, self.experts, space.vary, resolved=bool(self.trained))
        )
        for path, values in space.vary.items():
            if training_path(path) is not None:
                if values.interpolates and self.vocabulary != "refuse":
                    problems.append(
                        f"{where}.vary.{path}.between: must be snap with vocabulary: "
                        f"{self.vocabulary}; got interpolate. Take snap, or one vocabulary."
                    )
                continue
            if isinstance(values, FloatRange) and values.knots is not None:
                problems.append(
                    f"{where}.vary.{path}.knots: are values of a training file that are trained; "
                    "got them for a number of the merge. Use a step, or choices."
                )
            try:
                for value in values.ends():
                    document = copy.deepcopy(template)
                    set_path(document, path, value)
                    problems += [
                        f"{where}.vary.{path}: illegal at {value!r}: {line}"
                        for line in _recipe_problems(document)
                    ]
            except KeyError as error:
                problems.append(f"{where}.vary.{path}: {error.args[0]}")
        return problems

    def template(self, space: SearchSpace) -> dict[str, Any]:
        """Return a space's template recipe as a plain document, validated."""
        recipe = MergeRecipe.model_validate_json(
            json.dumps(
                {
                    "base": self.base.resolved(),
                    "experts": [expert.resolved() for expert in self.experts],
                    "method": space.method.resolved(),
                    "steps": [step.resolved() for step in space.steps],
                    "layer_groups": [group.resolved() for group in space.layer_groups],
                    "dtype": self.dtype,
                    "vocabulary": self.vocabulary,
                    "tokenizer": self.tokenizer.resolved(),
                    "seed": self.seed,
                }
            )
        )
        return recipe.resolved()

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        models = changed_models(self.checkpoints, lambda ref: ref.located(folder))
        suites = [suite.located(folder) for suite in self.suites]
        trained = [ref.located(folder) for ref in self.trained]
        start = [located_path(file, folder) for file in self.start]
        rung = None if self.rung is None else self.rung.located(folder)
        changes = {"suites": suites, "trained": trained, "start": start, "rung": rung}
        return self.model_copy(update={**models, **changes})

    def with_checkpoints(self, by_name: dict[str, CheckpointRef]) -> Self:
        """Return a copy whose checkpoints, those of variants too, are replaced by name.

        A variant's checkpoint without fingerprint is one that is still to be trained.
        """
        models = changed_models(self.checkpoints, lambda ref: by_name[ref.name])
        trained = [by_name[variant.checkpoint.name] for variant in self.variants]
        return self.model_copy(update={**models, "trained": trained})

    def with_untrained(self, names: Collection[str]) -> Self:
        """Return a resolved copy of which some variants' checkpoints are still to be trained."""
        return self.model_copy(update={"untrained": sorted(names)})

    def with_made(self, made: CheckpointRef) -> Self:
        """Return a copy in which a variant is trained: the one whose folder this is."""
        same = [ref.name for ref in self.trained if ref.path == made.path]
        trained = [
            made.model_copy(update={"name": ref.name}) if ref.name in same else ref
            for ref in self.trained
        ]
        untrained = [name for name in self.untrained if name not in same]
        return self.model_copy(update={"trained": trained, "untrained": untrained})

    @property
    def variants(self) -> tuple[ExpertVariant, ...]:
        """Experts trained as the spaces vary them; none if no path leads into a file."""
        found = declared_variants(self.experts, [space.training_grid() for space in self.spaces])
        if not self.trained:
            return tuple(found)
        pairs = zip(found, self.trained, strict=True)
        return tuple(variant._replace(checkpoint=ref) for variant, ref in pairs)

    @property
    def made_checkpoints(self) -> tuple[CheckpointRef, ...]:
        """`all_checkpoints` without those that are still to be trained."""
        return tuple(ref for ref in self.all_checkpoints if ref.name not in self.untrained)

    @property
    def all_checkpoints(self) -> tuple[CheckpointRef, ...]:
        """Base, experts, then the variants' checkpoints."""
        return (*self.checkpoints, *(variant.checkpoint for variant in self.variants))

    @property
    def checkpoints(self) -> tuple[CheckpointRef, ...]:
        """Base first, then the experts in their declared order."""
        return (self.base, *self.experts)

    @property
    def served_judges(self) -> list[ModelJudge]:
        """Judges of either split with ``placement: service``, each once."""
        found: list[ModelJudge] = []
        for judge in (judge for suite in self.suites for judge in suite.judges):
            if isinstance(judge, ModelJudge) and judge.placement == "service":
                found += [judge] if judge not in found else []
        return found


def _recipe_problems(document: dict[str, Any]) -> list[str]:
    try:
        MergeRecipe.model_validate_json(json.dumps(document))
    except ValidationError as error:
        return problem_lines(error, MergeRecipe, document)
    return []


def _repeated(what: str, names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    return [f"{what} must be unique; got {name!r} more than once." for name in twice]


def _unknown_metric(where: str, metric: str, known: list[str]) -> list[str]:
    if metric in known:
        return []
    return [f"{where}: no such metric; got {metric!r}. {did_you_mean(metric, known)}"]
