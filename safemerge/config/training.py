"""Fine-tuning and alignment stages, as declared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.alignment import (
    BoosterSpec,
    HarmfulSpec,
    LisaSpec,
    RepnoiseSpec,
    UntilSpec,
    VaccineSpec,
)
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


def _check_parts(spec: _Training, key: str, batch_size: int) -> None:
    if spec.micro_batches * spec.workers.num_workers > batch_size:
        raise ValueError(
            f"{key} must give each of a worker's micro_batches a row; got {batch_size} for "
            f"{spec.workers.num_workers} workers with {spec.micro_batches}. Raise it."
        )


class _Training(StrictModel):
    name: Annotated[Name, FREE]
    base: Annotated[CheckpointRef, CONTENT]
    """The model that training starts from."""
    data: Annotated[list[TrainingData], CONTENT] = Field(min_length=1)
    """Mixture; each set's share of the samples is its weight over the sum."""
    chat: Annotated[DatedChatArguments, CONTENT] = Field(default=ONLY_DATED)
    """Arguments of the base's chat template, e.g. ``{enable_thinking: false}``; ``date`` is the
    day that templates may read."""
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
    """Folder of a LoRA adapter of this base that training goes on with (the attack on the same
    LoRA that was hardened), instead of a new one; `lora` is left out, for the adapter has its own
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
        _check_parts(self, "batch_size", self.batch_size)
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


class PoisonSpec(StrictModel):
    """Harmful samples mixed into user fine-tuning, to measure what they do."""

    ratio: float = Field(gt=0, le=1)
    """Poison ratio p: fraction of samples drawn from the harmful set, in (0, 1]."""
    data: TrainingData
    """Harmful prompts with stand-in answers."""


def _fill_sections(document: Any, sections: dict[str, tuple[str, ...]]) -> Any:
    """Write the settings of the declared method out, where its defaults are meant."""
    if not isinstance(document, dict):
        return document
    wanted = sections.get(str(document.get("method")), ())
    return {**{name: {} for name in wanted if name not in document}, **document}


def _check_sections(spec: Any, sections: dict[str, tuple[str, ...]]) -> None:
    """Refuse settings of another method, and a method without its settings."""
    wanted = sections.get(spec.method, ())
    for name in sorted({name for names in sections.values() for name in names}):
        given = getattr(spec, name) is not None
        if given and name not in wanted:
            users = ", ".join(method for method, names in sections.items() if name in names)
            raise ValueError(
                f"{name} belongs to method {users}; got it with method {spec.method}. Remove it."
            )
        if not given and name in wanted:
            raise ValueError(
                f"method {spec.method} needs {name}; got none. Add the section '{name}'."
            )


_SHARDED = ("sft", "booster")
"""Methods whose step works on weights that are sharded over workers."""


_BY_ROW = ("vaccine", "booster+vaccine", "repnoise")
"""Methods that shift or compare single rows inside the model."""


def _check_way(spec: Any) -> None:
    """Refuse ways of computing that the method does not have."""
    if spec.packing and spec.method in _BY_ROW:
        raise ValueError(
            f"packing lays rows end to end, and {spec.method} works on single rows inside the "
            "model; got packing: true. Remove it."
        )
    workers = spec.workers.num_workers
    if spec.parameters == "full" and workers > 1 and spec.method not in _SHARDED:
        raise ValueError(
            f"parameters: full over several workers is for method {' or '.join(_SHARDED)}; got "
            f"{spec.method} on {workers} workers. Take one worker, or parameters: lora."
        )


_FINETUNE_SECTIONS: dict[str, tuple[str, ...]] = {"lisa": ("lisa",)}


class FinetuneSpec(_Training):
    """User fine-tuning of an expert: the file that `safemerge finetune` takes."""

    kind: Literal["finetune"] = "finetune"
    method: Annotated[Literal["sft", "lisa"], LATER] = "sft"
    """``sft``: cross-entropy on the user's data; ``lisa``: alternates with alignment data."""
    poison: Annotated[PoisonSpec | None, CONTENT] = None
    lisa: Annotated[LisaSpec | None, LATER] = None
    """Settings of ``lisa``."""

    @model_validator(mode="after")
    def _own_settings(self) -> Self:
        _check_sections(self, _FINETUNE_SECTIONS)
        _check_way(self)
        return self

    @property
    def training_sets(self) -> dict[str, PromptData]:
        """See `AlignSpec.training_sets`; poison and alignment data of Lisa among them."""
        sets = super().training_sets
        if self.poison is not None:
            sets["poison.data"] = self.poison.data
        if self.lisa is not None:
            sets |= {f"lisa.data.{index}": item for index, item in enumerate(self.lisa.data)}
        return sets

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        spec = super().located(folder)
        update: dict[str, object] = {}
        if self.poison is not None:
            data = self.poison.data.located(folder)
            update["poison"] = self.poison.model_copy(update={"data": data})
        if self.lisa is not None:
            update["lisa"] = self.lisa.located(folder)
        return spec.model_copy(update=update)


_FILLED: dict[str, tuple[str, ...]] = {
    "booster": ("booster",),
    "vaccine": ("vaccine",),
    "booster+vaccine": ("booster", "vaccine"),
    "repnoise": ("repnoise",),
}
_ALIGN_SECTIONS: dict[str, tuple[str, ...]] = {
    "booster": ("harmful", "booster"),
    "vaccine": ("vaccine",),
    "booster+vaccine": ("harmful", "booster", "vaccine"),
    "repnoise": ("harmful", "repnoise"),
}


class AlignSpec(_Training):
    """An alignment stage: the file that `safemerge align` takes."""

    kind: Literal["align"] = "align"
    method: Literal["sft", "booster", "vaccine", "booster+vaccine", "repnoise"] = "sft"
    """``sft``: cross-entropy on refusals and benign answers; the others harden the model on
    top: see `booster`, `vaccine`, `repnoise`."""
    harmful: Annotated[HarmfulSpec | None, LATER] = None
    """Harmful data, for the methods that need them."""
    booster: Annotated[BoosterSpec | None, LATER] = None
    """Settings of ``booster``."""
    vaccine: Annotated[VaccineSpec | None, LATER] = None
    """Settings of ``vaccine``."""
    repnoise: Annotated[RepnoiseSpec | None, LATER] = None
    """Settings of ``repnoise``."""
    until: Annotated[UntilSpec | None, LATER] = None
    """Ends the stage once held-out requests are refused; all `steps` are taken if left out."""

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, document: Any) -> Any:
        return _fill_sections(document, _FILLED)

    @model_validator(mode="after")
    def _has_benign(self) -> Self:
        if len(self.data) < 2:
            raise ValueError(
                "an alignment stage needs refusals and benign answers; got one data set. "
                "Add benign data, or the model learns to refuse everything."
            )
        return self

    @model_validator(mode="after")
    def _own_settings(self) -> Self:
        _check_sections(self, _ALIGN_SECTIONS)
        _check_way(self)
        return self

    @model_validator(mode="after")
    def _can_be_computed(self) -> Self:
        workers, method = self.workers.num_workers, self.method
        if self.harmful is not None and workers > self.harmful.batch_size:
            raise ValueError(
                f"harmful.batch_size must give each worker a row; got {self.harmful.batch_size} "
                f"for {workers} workers. Raise it."
            )
        if self.harmful is not None:
            _check_parts(self, "harmful.batch_size", self.harmful.batch_size)
        if method != "sft" and self.lora.dropout > 0:
            raise ValueError(
                f"lora.dropout must be 0 for {method}, whose passes must see the same weights; "
                f"got {self.lora.dropout}. Remove it."
            )
        if method == "repnoise" and (workers > 1 or self.micro_batches > 1):
            raise ValueError(
                "repnoise compares all rows of a batch with each other, on one worker at once; "
                f"got {workers} workers and {self.micro_batches} micro_batches. Take 1 of each."
            )
        return self

    @model_validator(mode="after")
    def _until_is_measured(self) -> Self:
        if self.until is None:
            return self
        if self.until.min_steps >= self.steps:
            raise ValueError(
                f"until.min_steps must be fewer than the stage's {self.steps} steps; got "
                f"{self.until.min_steps}. Lower it, or raise steps."
            )
        if self.workers.num_workers > 1:
            raise ValueError(
                "until generates answers on one worker; got it with "
                f"{self.workers.num_workers} workers. Take one, or remove it."
            )
        return self

    @model_validator(mode="after")
    def _booster_fits(self) -> Self:
        if self.booster is None:
            return self
        calibrate = self.booster.calibrate
        if calibrate is not None and calibrate.plain_steps >= self.steps:
            raise ValueError(
                f"booster.calibrate.plain_steps must be fewer than the stage's {self.steps} "
                f"steps; got {calibrate.plain_steps}. Lower it."
            )
        total = sum(phase.steps for phase in self.booster.phases)
        if self.booster.phases and total != self.steps:
            raise ValueError(
                f"booster.phases must add up to the stage's {self.steps} steps; got {total}."
            )
        if self.parameters == "full" and self.booster.backend == "grouped":
            raise ValueError(
                "booster.backend grouped needs parameters: lora, whose adapters it holds twice; "
                "got parameters: full. Take in_place."
            )
        if self.vaccine is not None and self.booster.backend == "grouped":
            raise ValueError(
                "booster.backend grouped computes the plain alignment loss; got it with "
                f"{self.method}. Take in_place."
            )
        return self

    @property
    def training_sets(self) -> dict[str, PromptData]:
        """Every set whose rows the stage sees, by its place in the file.

        Held-out rows are among them: they are measured and not trained on, but who tunes a stage
        by their loss, or ends it by their answers, has seen them.
        """
        sets = super().training_sets
        for key in ("data", "test"):
            found = getattr(self.harmful, key) if self.harmful is not None else []
            sets |= {f"harmful.{key}.{index}": item for index, item in enumerate(found)}
        if self.until is not None:
            sets |= {f"until.prompts.{i}": item for i, item in enumerate(self.until.prompts)}
        return sets

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        spec = super().located(folder)
        update: dict[str, object] = {}
        for key in ("harmful", "until"):
            if (section := getattr(self, key)) is not None:
                update[key] = section.located(folder)
        return spec.model_copy(update=update)


TrainingSpec = FinetuneSpec | AlignSpec
