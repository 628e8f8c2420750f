"""The full declaration of one merge: base, experts, method, steps, dtype, seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel, digest
from safemerge.config.checkpoint import (
    CHECKPOINT_SOURCES,
    CheckpointRef,
    Quantity,
    Vocabulary,
)
from safemerge.config.coefficient import (
    DEFAULT_GROUP,
    Anchors,
    Coefficient,
    LayerGroup,
    Number,
)
from safemerge.config.method import (
    BY_EXPERT,
    DareLinear,
    DareTies,
    Linear,
    Method,
    Slerp,
    TaskArithmetic,
    Ties,
)
from safemerge.config.problems import did_you_mean
from safemerge.config.source import SeenData
from safemerge.config.step import Step
from safemerge.config.tokenizer import TokenizerChoice

__all__ = [
    "DEFAULT_GROUP",
    "Coefficient",
    "DareLinear",
    "DareTies",
    "LayerGroup",
    "Linear",
    "MergeRecipe",
    "Method",
    "Slerp",
    "Step",
    "TaskArithmetic",
    "Ties",
]


class MergeRecipe(StrictModel):
    """Full declaration of one merge; its weights are the *candidate*."""

    base: CheckpointRef
    """Checkpoint that all task vectors are measured from; also gives the config, and the tokenizer
    unless `tokenizer` names another model."""
    experts: list[CheckpointRef]
    """Checkpoints that are merged, with unique names; at least one, but for passthrough."""
    method: Method
    steps: list[Step] = Field(default_factory=list)
    """Safety operators, in order: those on experts run before the method, the others after."""
    layer_groups: list[LayerGroup] = Field(default_factory=list)
    """Groups for layer-wise coefficients; the first group that matches a tensor holds."""
    anchors: Anchors = Field(default="depth", exclude_if=lambda given: given == "depth")
    """Where tensors outside the layers stand on anchors: ``depth``, embeddings at the first and
    what follows the layers at the last; ``mergekit``, all at the first, as mergekit 0.1.5."""
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    """Type of the merged weights; arithmetic is always in float32."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the random masks (DARE, DELLA)."""
    vocabulary: Vocabulary = "refuse"
    """Tokenizers that differ: ``refuse`` them; keep the ``base``'s, rows of embeddings and output
    head matched by token, an expert's other tokens left out; the ``union``, the base's tokens
    and after them the experts' added ones in order; or the ``tokenizer``'s of the model that
    `tokenizer.from` names, as ``base`` is the base's. In a model that lacks a token its row is the
    base's, else the mean of the rows of the experts that have it, so that its task vector there
    is zero. Tokenizers are no part of digests."""
    tokenizer: TokenizerChoice = Field(
        default_factory=TokenizerChoice, exclude_if=lambda choice: choice.is_default
    )
    """Whose tokenizer and chat template the merge is given; the base's if left out."""
    seen: list[SeenData] = Field(default_factory=list, exclude_if=lambda items: not items)
    """Written by `safemerge optimize`: the data that numbers and models were found with. Reports
    on their prompts are refused; no part of digests."""

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        problems = [*self._name_problems(), *self._group_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def coefficients(self) -> Iterator[tuple[str, Number]]:
        """Yield (dotted field, coefficient) for every layer-wise coefficient."""
        for field, value in self.method.coefficients():
            yield f"method.{field}", value
        for step in self.steps:
            for field, value in step.coefficients():
                yield f"steps.{step.name}.{field}", value

    def _name_problems(self) -> Iterator[str]:
        names = [item.name for item in self.checkpoints]
        if not self.experts and self.method.name != "passthrough":
            yield "experts: must have at least 1 item; got 0."
            return
        if len(set(names)) != len(names):
            yield f"names of base and experts must be unique; got {names}."
        experts = [name for name in names if name != self.base.name]
        known = [*experts, self.base.name] if self.method.takes_base else experts
        for name in sorted(self.method.model_names() - set(known)):
            yield f"method: names an unknown model; got {name!r}. {did_you_mean(name, known)}"
        for field in ("density", *sorted(BY_EXPERT)):
            given = getattr(self.method, field, None)
            if not isinstance(given, dict) or set(given) == set(self.method.model_names()):
                continue
            if field == "density" and not self.method.density_by_expert:
                continue  # by layer group
            yield (
                f"method.{field}: must name the experts of method.weights, "
                f"{sorted(self.method.model_names())}; got {sorted(given)}."
            )
        yield from self.tokenizer.problems(names, self.vocabulary)
        if self.vocabulary != "refuse" and any(ref.between for ref in self.experts):
            yield (
                "vocabulary: must be refuse where weights lie between two checkpoints, whose rows "
                f"are those of one vocabulary; got {self.vocabulary}."
            )
        yield from self._step_problems(names)
        yield from self._statistics_problems()

    def statistics_read(self) -> dict[str, frozenset[Quantity]]:
        """What the method and the steps read of each model's statistics, by model name."""
        read: dict[str, set[Quantity]] = {}
        names = self.method.model_names()
        readers: list[tuple[Quantity | None, frozenset[str]]] = [(self.method.statistic, names)]
        readers += [(step.statistic, names - {self.base.name}) for step in self.steps]
        for statistic, models in readers:
            if statistic is not None:
                for name in models:
                    read.setdefault(name, set()).add(statistic)
        return {name: frozenset(found) for name, found in sorted(read.items())}

    def _statistics_problems(self) -> Iterator[str]:
        given = {ref.name for ref in self.checkpoints if ref.statistics is not None}
        for name, quantities in self.statistics_read().items():
            if name not in given:
                yield (
                    f"statistics: method or steps need {', '.join(sorted(quantities))} of every "
                    f"model that is merged; got none of {name!r}. Give the model "
                    f"'statistics: {{gather: FILE.yaml}}'."
                )
        if self.vocabulary != "refuse" and self.statistics_read():
            yield (
                "vocabulary: must be refuse where statistics are read, since their rows are those "
                f"of each model's own tokens; got {self.vocabulary}. Bring the models to one "
                "vocabulary first: merge each alone onto the base, and gather on the results."
            )
        merged = sorted(self.method.model_names() - {self.base.name})
        for step in self.steps:
            density = getattr(step, "density", None)
            if isinstance(density, dict) and sorted(density) != merged:
                yield (
                    f"steps.{step.name}.density: must name the experts that the method merges, "
                    f"{merged}; got {sorted(density)}."
                )

    def _step_problems(self, known: list[str]) -> Iterator[str]:
        steps = [step.name for step in self.steps]
        if len(set(steps)) != len(steps):
            yield f"steps: each may be taken once; got {steps}."
        merged = sorted(self.method.model_names() - {self.base.name})
        for step in self.steps:
            for name in sorted(step.models_read(self.base.name) - set(known)):
                yield (
                    f"steps.{step.name}: names an unknown model; got {name!r}. "
                    f"{did_you_mean(name, known)}"
                )
            for name in step.experts or ():
                if name not in merged:
                    yield (
                        f"steps.{step.name}.experts: must be experts that the method merges; "
                        f"got {name!r}. {did_you_mean(name, merged)}"
                    )
            if step.on == "experts" and not any(
                step.changes(name, self.base.name) for name in merged
            ):
                yield (
                    f"steps.{step.name}: must change an expert; got none left, for the method "
                    f"merges only what the step reads. Name experts, or take 'on: merged'."
                )

    def _group_problems(self) -> Iterator[str]:
        groups = [group.name for group in self.layer_groups]
        if len(set(groups)) != len(groups):
            yield f"layer_groups: names must be unique; got {groups}."
        for where, value in self.coefficients():
            if not isinstance(value, dict):
                continue
            for name in sorted(set(value) - set(groups) - {DEFAULT_GROUP}):
                yield (
                    f"{where}: names an unknown layer group; got {name!r}. "
                    f"{did_you_mean(name, [*groups, DEFAULT_GROUP])}"
                )
            missing = [name for name in groups if name not in value]
            if DEFAULT_GROUP not in value and (missing or not value):
                yield (
                    f"{where}: must name every layer group or '{DEFAULT_GROUP}'; "
                    f"missing {(missing or [DEFAULT_GROUP])[0]!r}."
                )

    @property
    def checkpoints(self) -> tuple[CheckpointRef, ...]:
        """Base first, then the experts in their declared order."""
        return (self.base, *self.experts)

    @property
    def vocabulary_owner(self) -> str | None:
        """Expert whose tokens and ids the merge has; None if they are the base's."""
        owner = self.tokenizer.owner(self.base.name)
        return owner if self.vocabulary == "tokenizer" and owner != self.base.name else None

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative paths are taken from `folder`."""
        update = changed_models(self.checkpoints, lambda ref: ref.located(folder))
        update["seen"] = [item.located(folder) for item in self.seen]
        return self.model_copy(update=update)

    def with_checkpoints(self, by_name: dict[str, CheckpointRef]) -> Self:
        """Return a copy whose checkpoints are replaced by name."""
        return self.model_copy(
            update=changed_models(self.checkpoints, lambda ref: by_name[ref.name])
        )

    @property
    def digest(self) -> str:
        """The candidate's digest: everything its weights depend on, and nothing else.

        Checkpoints count by fingerprint where known (so a moved folder is the same candidate),
        else by their reference; statistics likewise, and only those that are read. A default
        that came later counts only where it is changed, so that older candidates keep their
        digest.
        """
        document: dict[str, Any] = self.resolved()
        document.pop("seen", None)
        read = self.statistics_read()
        if document["vocabulary"] == "refuse":
            del document["vocabulary"]
        # Files beside the weights; but an order of rows is of the weights.
        if document.pop("tokenizer", None) and document.get("vocabulary") == "tokenizer":
            document["tokenizer"] = self.tokenizer.from_
        if self.tokenizer.rows:
            document["rows"] = self.tokenizer.rows
        for item in (document["base"], *document["experts"]):
            if not item["settings"]:
                del item["settings"]  # as before there were any
            if item["name"] not in read:
                del item["statistics"]
            elif item["statistics"]["digest"] is not None:
                item["statistics"] = {"digest": item["statistics"]["digest"]}
            if item["digest"] is not None:
                for key in CHECKPOINT_SOURCES:
                    item.pop(key, None)
        return digest(document)


def changed_models(
    refs: Sequence[CheckpointRef], change: Callable[[CheckpointRef], CheckpointRef]
) -> dict[str, Any]:
    """Return the fields ``base`` and ``experts`` of a recipe or a study, for `model_copy`.

    Args:
        refs: Base first, then the experts; they stay as they are.
        change: Gives the new reference for each.
    """
    base, *experts = map(change, refs)
    return {"base": base, "experts": experts}
