"""Fine-tuning and alignment stages, as declared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import CheckpointRef, Name
from safemerge.config.source import TrainingData


class LoraSpec(StrictModel):
    """A low-rank adapter (Hu et al., arXiv:2106.09685), trained by peft."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    """lora_alpha: the update is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] = Field(
        default_factory=lambda: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        min_length=1,
    )
    """Module names that get an adapter."""
    first_layer: int = Field(default=0, ge=0)
    """Adapters start at this decoder layer; later starts make cheaper backward passes."""


class WorkersSpec(StrictModel):
    """Ray Train workers."""

    num_workers: int = Field(default=1, ge=1)
    cpus_per_worker: float = Field(default=2.0, gt=0)
    """Also the number of torch threads of a worker on CPU."""
    gpus_per_worker: float = Field(default=0.0, ge=0)


class _Training(StrictModel):
    name: Name
    base: CheckpointRef
    """The model that training starts from."""
    data: list[TrainingData] = Field(min_length=1)
    """Mixture; each set's share of the samples is its weight over the sum."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=8, ge=1)
    """Samples a step, over all workers."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """AdamW's peak; 5 warm-up steps, then linear to zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global-norm clipping."""
    max_tokens: int = Field(default=256, ge=8)
    """Longest prompt plus target, in tokens; longer samples are cut at the end."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    lora: LoraSpec = Field(default_factory=LoraSpec)
    output: Literal["dense", "adapter"] = "dense"
    """``dense``: adapter merged into a full checkpoint; ``adapter``: peft's own format."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen base; adapters and optimiser are always float32. ``auto``: bfloat16
    on GPUs and on CPUs that multiply it natively, else float32."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between resumable checkpoints."""
    workers: WorkersSpec = Field(default_factory=WorkersSpec)

    @model_validator(mode="after")
    def _row_for_each_worker(self) -> Self:
        if self.workers.num_workers > self.batch_size:
            raise ValueError(
                f"batch_size must give each worker a row; got {self.batch_size} for "
                f"{self.workers.num_workers} workers. Raise it."
            )
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        update: dict[str, object] = {
            "base": self.base.located(folder),
            "data": [item.located(folder) for item in self.data],
        }
        return self.model_copy(update=update)


class PoisonSpec(StrictModel):
    """Harmful samples mixed into user fine-tuning, to measure what they do."""

    ratio: float = Field(gt=0, le=1)
    """Poison ratio p: fraction of samples drawn from the harmful set, in (0, 1]."""
    data: TrainingData
    """Harmful prompts with stand-in answers."""


class FinetuneSpec(_Training):
    """User fine-tuning of an expert: the file that `safemerge finetune` takes."""

    kind: Literal["finetune"] = "finetune"
    poison: PoisonSpec | None = None

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        spec = super().located(folder)
        if self.poison is None:
            return spec
        poison = self.poison.model_copy(update={"data": self.poison.data.located(folder)})
        return spec.model_copy(update={"poison": poison})


class AlignSpec(_Training):
    """An alignment stage: the file that `safemerge align` takes."""

    kind: Literal["align"] = "align"
    method: Literal["sft"] = "sft"
    """``sft``: cross-entropy on refusals and benign answers."""

    @model_validator(mode="after")
    def _has_benign(self) -> Self:
        if len(self.data) < 2:
            raise ValueError(
                "an alignment stage needs refusals and benign answers; got one data set. "
                "Add benign data, or the model learns to refuse everything."
            )
        return self


TrainingSpec = FinetuneSpec | AlignSpec
