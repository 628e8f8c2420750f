"""Statistics of a model on data, as declared: what data-aware merge methods read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.chat import ONLY_DATED, DatedChatArguments
from safemerge.config.checkpoint import Name, Quantity
from safemerge.config.source import TrainingData
from safemerge.config.stage import WorkersSpec


class StatisticsSpec(StrictModel):
    """What is measured of a model, and on which rows.

    The file names no model: a model of a recipe or a study names the file
    (``statistics: {gather: FILE}``), so that one file serves several models.
    """

    kind: Literal["statistics"] = "statistics"
    name: Name
    data: list[TrainingData] = Field(min_length=1)
    """Prompts and answers that the model is measured on; a set's share of the rows is its weight
    over the sum."""
    chat: DatedChatArguments = Field(default=ONLY_DATED)
    """Arguments of the base's chat template, e.g. ``{enable_thinking: false}``; ``date`` is the
    day that templates may read."""
    quantities: list[Quantity] = Field(min_length=1)
    """``fisher``: diagonal of the Fisher information, for method fisher; ``gram``: inner products
    of every linear layer's inputs, for method regmean; ``importance``: abs(w dL/dw) of this model
    and, on the same rows, of the base, for step led."""
    num_samples: int = Field(default=256, ge=1)
    """Rows in all. Of each set the first ones are taken, each once."""
    fisher: Literal["empirical", "sampled"] = "empirical"
    """Whose tokens the log-probability is of: ``empirical``: the data's answers; ``sampled``: the
    true Fisher, tokens drawn from the model itself at every position of the answer, the data's
    tokens before it."""
    num_draws: int = Field(default=1, ge=1)
    """With ``fisher: sampled``, answers drawn for each row."""
    max_tokens: int = Field(default=256, ge=8)
    """Longest prompt plus answer, in tokens; longer rows are cut at the end."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the drawn tokens and of responses chosen among several."""
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    """Type of the weights while measuring; sums are always float32 (Gram matrices: float64).
    ``auto``: bfloat16 where it is native."""
    workers: WorkersSpec = Field(default_factory=WorkersSpec)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(set(self.quantities)) != len(self.quantities):
            raise ValueError(f"quantities must be unique; got {self.quantities}.")
        if self.workers.num_workers > self.num_samples:
            raise ValueError(
                f"num_samples must give each worker a row; got {self.num_samples} for "
                f"{self.workers.num_workers} workers. Raise it."
            )
        if self.num_draws > 1 and self.fisher != "sampled":
            raise ValueError(
                f"num_draws belongs to fisher sampled; got {self.num_draws} with "
                f"{self.fisher}. Remove it."
            )
        return self

    @property
    def training_sets(self) -> dict[str, TrainingData]:
        """Every set whose rows decide the merge, by its place in the file."""
        return {f"data.{index}": item for index, item in enumerate(self.data)}

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"data": [item.located(folder) for item in self.data]})
