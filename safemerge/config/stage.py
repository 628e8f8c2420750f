"""What every training stage declares: base, data, optimiser, adapter, workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import CONTENT, FREE, LATER, StrictModel
from safemerge.config.chat import ONLY_DATED, DatedChatArguments
from safemerge.config.checkpoint import CheckpointRef, Name
from safemerge.config.location import located_path
from safemerge.config.source import PromptData, TrainingData


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


def check_parts(spec: TrainingStage, key: str, batch_size: int) -> None:
    """Check that each part of a worker's batch has a row.

    Raises:
        ValueError: If one has none.
    """
    if spec.micro_batches * spec.workers.num_workers > batch_size:
        raise ValueError(
            f"{key} must give each of a worker's micro_batches a row; got {batch_size} for "
            f"{spec.workers.num_workers} workers with {spec.micro_batches}. Raise it."
        )


_SHARDED = ("sft", "booster")
"""Methods whose step works on weights that are sharded over workers."""


class TrainingStage(StrictModel):
    """What fine-tuning and alignment stages share."""

    by_row: ClassVar[bool] = False
    """Whether the method shifts or compares single rows inside the model."""

    name: Annotated[Name, FREE]
    base: Annotated[CheckpointRef, CONTENT]
    """The model that training starts from."""
    data: Annotated[list[TrainingData], CONTENT] = Field(min_length=1)
    """Mixture; each set's share of the samples is its weight over the sum."""
    chat: Annotated[DatedChatArguments, CONTENT] = Field(default=ONLY_DATED)
    """Arguments of the base's chat template, e.g. ``{enable_thinking: false}``; ``date`` is the
    day that templates may read."""
    method: str
    """Which gradient is followed."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=8, ge=1)
    """Samples a step, over all workers."""
    micro_batches: Annotated[int, LATER] = Field(default=1, ge=1)
    """Parts that a worker's batch is computed in, one after the other; the same update for
    less memory."""
    packing: Annotated[bool, LATER] = False
    """Lay the rows of a batch end to end, so that nothing is spent on padding; the same update up
    to rounding. Not for methods that look at single rows (Vaccine, RepNoise)."""
    loss_chunk: Annotated[int | None, LATER] = Field(default=None, ge=1)
    """Target tokens whose logits are held in memory at once; all if left out. The same update up
    to rounding."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """AdamW's peak, reached after 5 warm-up steps."""
    schedule: Annotated[Literal["linear", "constant"], LATER] = "linear"
    """After the warm-up: ``linear`` to zero at the last step, or ``constant``."""
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global-norm clipping."""
    max_tokens: int = Field(default=256, ge=8)
    """Longest prompt plus target, in tokens; longer samples are cut at the end."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    parameters: Annotated[Literal["lora", "full"], LATER] = "lora"
    """What is trained: ``lora`` a low-rank adapter on frozen weights; ``full`` every weight, in
    float32 and sharded over the workers if there are several (FSDP2)."""
    lora: LoraSpec = Field(default_factory=LoraSpec)
    adapter: Annotated[str | None, LATER] = None
    """Folder of a LoRA adapter of this base that training continues (the attack on the same LoRA
    that was hardened), instead of a new one; `lora` is left out, for the adapter has its own
    rank, scale and targets."""
    output: Literal["dense", "adapter"] = "dense"
    """``dense``: adapter merged into a full checkpoint; ``adapter``: peft's own format."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen base, or with ``parameters: full`` of the products; what is trained, its
    gradients and the optimiser are always float32. ``auto``: bfloat16 on GPUs and on CPUs that
    multiply it natively, else float32."""
    checkpoint_every: Annotated[int, FREE] = Field(default=20, ge=1)
    """Steps between resumable checkpoints."""
    workers: Annotated[WorkersSpec, FREE] = Field(default_factory=WorkersSpec)

    @model_validator(mode="after")
    def _row_for_each_worker(self) -> Self:
        if self.workers.num_workers > self.batch_size:
            raise ValueError(
                f"batch_size must give each worker a row; got {self.batch_size} for "
                f"{self.workers.num_workers} workers. Raise it."
            )
        check_parts(self, "batch_size", self.batch_size)
        return self

    @model_validator(mode="after")
    def _one_adapter(self) -> Self:
        if self.adapter is not None and self.lora != LoraSpec():
            raise ValueError(
                "lora describes a new adapter; got it beside adapter, which has its own rank, "
                "scale and targets. Remove one."
            )
        return self

    @model_validator(mode="after")
    def _full_or_adapter(self) -> Self:
        if self.parameters == "lora":
            return self
        for key, given in (("lora", self.lora != LoraSpec()), ("adapter", self.adapter)):
            if given:
                raise ValueError(
                    f"{key} belongs to parameters: lora; got it with parameters: full. Remove one."
                )
        if self.output == "adapter":
            raise ValueError(
                "output: adapter needs parameters: lora; got parameters: full, which leaves a "
                "dense checkpoint. Remove one."
            )
        return self

    @model_validator(mode="after")
    def _computed_as_the_method_can(self) -> Self:
        if self.packing and self.by_row:
            raise ValueError(
                f"packing lays rows end to end, and {self.method} works on single rows inside "
                "the model; got packing: true. Remove it."
            )
        workers = self.workers.num_workers
        if self.parameters == "full" and workers > 1 and self.method not in _SHARDED:
            raise ValueError(
                f"parameters: full over several workers is for method {' or '.join(_SHARDED)}; "
                f"got {self.method} on {workers} workers. Take one worker, or parameters: lora."
            )
        return self

    @property
    def training_sets(self) -> dict[str, PromptData]:
        """Every set whose rows the stage sees, by its place in the file."""
        return {f"data.{index}": item for index, item in enumerate(self.data)}

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        update: dict[str, object] = {
            "base": self.base.located(folder),
            "data": [item.located(folder) for item in self.data],
        }
        if self.adapter is not None:
            update["adapter"] = located_path(self.adapter, folder)
        return self.model_copy(update=update)
