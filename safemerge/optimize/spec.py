"""Data-aware optimisation of a merge's coefficients, as declared.

References:
    Hammoud et al., Model Merging and Safety Alignment, arXiv:2406.14563, section 3 (objective).
    Xiao et al., LM-Cocktail, arXiv:2311.13534, section 3.2.
    Yang et al., AdaMerging, arXiv:2310.02575, section 3.2.
    Akiba et al., Evolutionary Optimization of Model Merging Recipes, arXiv:2403.13187.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import FREE, StrictModel
from safemerge.config.chat import ONLY_DATED, DatedChatArguments
from safemerge.config.checkpoint import CheckpointRef, Name
from safemerge.config.coefficient import LayerGroup
from safemerge.config.recipe import changed_models
from safemerge.config.source import TrainingData
from safemerge.config.stage import WorkersSpec
from safemerge.config.study import EvaluatorSpec

ObjectiveName = Literal["safety+expert", "expert", "entropy"]


class LmCocktail(StrictModel):
    """LM-Cocktail: one weight a model, from its loss; a linear mix of whole weights."""

    name: Literal["lm_cocktail"]
    temperature: float = Field(default=5.0, gt=0)
    """T of softmax(-loss_i / T), losses in nats. 5 in the authors' FlagEmbedding, 1 in the code of
    arXiv:2406.14563. Small: the best model takes all; large: the plain mean."""
    include_base: bool = False
    """Whether the base is one of the mixed models."""


class _Coefficients(StrictModel):
    """Which coefficients there are, where they start, and where they must stay."""

    coefficients: Literal["layer", "group", "model"] = "layer"
    """One for each expert and ``layer`` (embeddings, every decoder layer, the rest), each of
    `layer_groups` (and the rest), or the whole ``model``."""
    layer_groups: list[LayerGroup] = Field(default_factory=list)
    """Groups for ``coefficients: group``; the first that matches a tensor holds."""
    start: float | None = None
    """Every coefficient's first value; 1 / experts if left out."""
    low: float = 0.0
    """Least coefficient, included. Negative values let an expert be subtracted."""
    high: float = 1.0
    """Largest coefficient, included; 1 adds an expert's task vector whole."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high; got low={self.low}, high={self.high}.")
        if self.start is not None and not self.low <= self.start <= self.high:
            raise ValueError(
                f"start must be within [low, high]; got {self.start} outside "
                f"[{self.low}, {self.high}]."
            )
        if (self.coefficients == "group") != bool(self.layer_groups):
            raise ValueError(
                f"layer_groups and 'coefficients: group' need each other; got coefficients "
                f"{self.coefficients} and {len(self.layer_groups)} groups."
            )
        names = [group.name for group in self.layer_groups]
        if len(set(names)) != len(names):
            raise ValueError(f"names of layer_groups must be unique; got {names}.")
        return self

    def first_value(self, num_experts: int) -> float:
        """Return the value that every coefficient starts from, in [low, high]."""
        value = 1.0 / num_experts if self.start is None else self.start
        return min(max(value, self.low), self.high)


class GradientDescent(_Coefficients):
    """Adam on task-arithmetic coefficients, through the merged weights' gradient.

    After each step the coefficients are cut to [low, high]: a projected gradient method.
    """

    name: Literal["gradient"]
    steps: int = Field(default=500, ge=1)
    """Adam's steps (AdaMerging's number)."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Adam's, constant (AdaMerging's). About the most that a coefficient moves in a step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's share of the old mean gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's share of the old mean square."""
    batch_size: int = Field(default=16, ge=1)
    """Pairs of each of `safety` and `expert` in a step, over all workers."""
    micro_batches: int = Field(default=1, ge=1)
    """Parts that a worker's batch is computed in, one after the other, for less memory."""


class CmaEs(_Coefficients):
    """CMA-ES over the coefficients, as EvoMM has it: forward passes only.

    Candidates outside [low, high] are drawn again, and cut to it if that does not help.
    """

    name: Literal["cma_es"]
    method: Literal["task_arithmetic", "ties", "dare_linear", "dare_ties"] = "task_arithmetic"
    """Merge method whose weights are searched."""
    density: float = Field(default=0.5, gt=0, le=1)
    """Fraction of the task vectors' entries kept, for methods that sparsify."""
    search_density: bool = False
    """Whether the density is searched too, one for all experts and layers, from `density` on."""
    evaluations: int = Field(default=100, ge=2)
    """Candidates scored. The paper's; longer searches on its proxy lose accuracy."""
    population: int | None = Field(default=None, ge=3)
    """Candidates a generation; 4 + floor(3 ln n) for n coefficients if left out."""
    sigma: float = Field(default=1.0 / 6.0, gt=0)
    """First step size, as a share of high - low."""

    @model_validator(mode="after")
    def _density_is_used(self) -> Self:
        if self.method == "task_arithmetic" and (self.search_density or self.density != 0.5):
            raise ValueError(
                "density belongs to methods that sparsify; got it with task_arithmetic. "
                "Remove it, or take ties, dare_linear or dare_ties."
            )
        return self


OptimizerSpec = Annotated[LmCocktail | GradientDescent | CmaEs, Field(discriminator="name")]


class OptimizeSpec(StrictModel):
    """Coefficients of a merge found by data: the file that `safemerge optimize` takes.

    Maximised is L_safety + alpha L_expert, where L_r is the mean over the pairs of a set of
    minus the cross-entropy a target token.
    """

    kind: Literal["optimize"] = "optimize"
    name: Annotated[Name, FREE]
    base: CheckpointRef
    """Checkpoint that task vectors are measured from."""
    experts: list[CheckpointRef] = Field(min_length=1)
    """Checkpoints that are merged, with unique names."""
    safety: list[TrainingData]
    """D_safety: unsafe prompts with refusals."""
    expert: list[TrainingData]
    """D_expert: prompts of the experts' tasks with right answers."""
    chat: DatedChatArguments = Field(
        default=ONLY_DATED, exclude_if=lambda given: given == ONLY_DATED
    )
    """Arguments of the base's chat template, e.g. ``{enable_thinking: false}``; ``date`` is the
    day that templates may read."""
    objective: ObjectiveName = "safety+expert"
    """``safety+expert``: see above. ``expert``: L_expert alone, the control that shows what
    safety data win; L_safety is measured all the same. ``entropy``: AdaMerging's: minus the
    entropy of the next token at the answer's first place, on prompts alone (no answer is read),
    weighted alike; it rewards certainty, which is not safety."""
    alpha: float = Field(default=0.3, ge=0, le=1)
    """Weight of the expert data in the objective, in [0, 1]; the paper finds it flat up to 0.5
    and worse at 1."""
    optimizer: OptimizerSpec
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Type of the merged weights in the recipe that is written."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the model while optimising; ``auto``: bfloat16 on GPUs and on CPUs that multiply it
    natively, else float32."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest prompt plus target, in tokens; longer pairs are cut at the end."""
    rows_at_once: Annotated[int, FREE] = Field(default=16, ge=1)
    """Pairs in one forward pass where whole sets are scored."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of batches, of CMA-ES's candidates, and of DARE's masks in the recipe."""
    checkpoint_every: Annotated[int, FREE] = Field(default=10, ge=1)
    """Steps between resumable checkpoints."""
    workers: Annotated[WorkersSpec, FREE] = Field(default_factory=WorkersSpec)
    evaluator: EvaluatorSpec | None = None
    """Score candidates on Ray Serve replicas with an engine each, by the log-probabilities of the
    answers, instead of on Ray Train workers; for ``cma_es`` and ``lm_cocktail``."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        problems = list(self._problems())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        names = [item.name for item in self.checkpoints]
        if len(set(names)) != len(names):
            yield f"names of base and experts must be unique; got {names}."
        if not self.safety:
            yield (
                "safety: must have a data set; got none. Without safety data a merge takes over "
                "its experts' misalignment; for that control keep them and take "
                "'objective: expert', which only measures them."
            )
        if not self.expert:
            yield "expert: must have a data set; got none. Add pairs of the experts' tasks."
        optimizer = self.optimizer
        if self.objective == "entropy" and optimizer.name != "gradient":
            yield (
                f"objective: entropy is AdaMerging's, by gradient; got it with "
                f"{optimizer.name}. Take 'optimizer: {{name: gradient}}'."
            )
        if self.evaluator is not None:
            yield from self._evaluator_problems(self.evaluator)
        if isinstance(optimizer, GradientDescent):
            needed = self.workers.num_workers * optimizer.micro_batches
            if optimizer.batch_size < needed:
                yield (
                    f"optimizer.batch_size must give each worker's micro_batches a row; got "
                    f"{optimizer.batch_size} for {needed}. Raise it."
                )

    def _evaluator_problems(self, evaluator: EvaluatorSpec) -> Iterator[str]:
        if self.optimizer.name == "gradient":
            yield (
                "evaluator: an engine has no gradient; got it with optimizer gradient. Remove it, "
                "or take cma_es or lm_cocktail."
            )
        if self.workers != WorkersSpec():
            yield "workers and evaluator exclude each other; got both. Keep one."
        if evaluator.max_model_len <= self.max_tokens:
            yield (
                f"evaluator.max_model_len must exceed max_tokens; got {evaluator.max_model_len} "
                f"and {self.max_tokens}. Raise it, or lower max_tokens."
            )

    @property
    def checkpoints(self) -> tuple[CheckpointRef, ...]:
        """Base first, then the experts in their declared order."""
        return (self.base, *self.experts)

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        update = changed_models(self.checkpoints, lambda ref: ref.located(folder))
        for key in ("safety", "expert"):
            update[key] = [item.located(folder) for item in getattr(self, key)]
        return self.model_copy(update=update)

    def with_checkpoints(self, by_name: dict[str, CheckpointRef]) -> Self:
        """Return a copy whose checkpoints are replaced by name."""
        return self.model_copy(
            update=changed_models(self.checkpoints, lambda ref: by_name[ref.name])
        )
