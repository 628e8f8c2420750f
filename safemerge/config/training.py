"""Fine-tuning stages, as declared, and the union of all training stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.alignment import AlignSpec
from safemerge.config.base import CONTENT, LATER, StrictModel
from safemerge.config.source import PromptData, TrainingData
from safemerge.config.stage import TrainingStage


class PoisonSpec(StrictModel):
    """Harmful samples mixed into user fine-tuning, to measure what they do."""

    ratio: float = Field(gt=0, le=1)
    """Poison ratio p: fraction of samples drawn from the harmful set, in (0, 1]."""
    data: TrainingData
    """Harmful prompts with stand-in answers."""


class LisaSpec(StrictModel):
    """Bi-state fine-tuning with a proximal term (Lisa, arXiv:2405.18641)."""

    data: Annotated[list[TrainingData], CONTENT] = Field(min_length=1)
    """Alignment data of the alignment state; no prompt of it may be in the user's data."""
    alignment_steps: int = Field(default=100, ge=1)
    """Steps in the alignment state before the user's state begins."""
    user_steps: int = Field(default=900, ge=1)
    """Steps in the user's state before the alignment state begins again."""
    rho: float = Field(default=1.0, ge=0)
    """Strength of the pull towards the weights where the other state ended; the papers take
    0.01 to 1."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of the stage's steps before the pull begins, in [0, 1]."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"data": [item.located(folder) for item in self.data]})


class FinetuneSpec(TrainingStage):
    """User fine-tuning of an expert: the file that `safemerge finetune` takes."""

    kind: Literal["finetune"] = "finetune"
    method: Annotated[Literal["sft", "lisa"], LATER] = "sft"
    """``sft``: cross-entropy on the user's data; ``lisa``: alternates with alignment data."""
    poison: Annotated[PoisonSpec | None, CONTENT] = None
    lisa: Annotated[LisaSpec | None, LATER] = None
    """Settings of ``lisa``."""

    @model_validator(mode="after")
    def _own_settings(self) -> Self:
        if self.lisa is not None and self.method != "lisa":
            raise ValueError(
                f"lisa belongs to method lisa; got it with method {self.method}. Remove it."
            )
        if self.lisa is None and self.method == "lisa":
            raise ValueError("method lisa needs lisa; got none. Add the section 'lisa'.")
        return self

    @property
    def training_sets(self) -> dict[str, PromptData]:
        """See `TrainingStage.training_sets`; poison and alignment data of Lisa among them."""
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


TrainingSpec = FinetuneSpec | AlignSpec
