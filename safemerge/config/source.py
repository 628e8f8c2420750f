"""Where rows of text come from, and how they become prompts and targets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.location import located_path


class _Source(StrictModel):
    start: int = Field(default=0, ge=0)
    """First row taken, after shuffling by `order_seed`; 0-indexed, included."""
    stop: int | None = Field(default=None, gt=0)
    """Row to stop before; all rows if left out. Disjoint ranges make disjoint splits."""
    order_seed: int = Field(default=0, ge=0)
    """Rows are ordered by a hash of (order_seed, sample id): stable under re-downloads."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"stop must exceed start; got start={self.start}, stop={self.stop}.")
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self


class PackageSource(_Source):
    """A data set read out of a pip package's wheel (see `safemerge data list`)."""

    kind: Literal["package"]
    name: str
    """A data set of the package table, e.g. ``do-not-answer``."""


class GeneratorSource(_Source):
    """Rows written by one of safemerge's own generators."""

    kind: Literal["generator"]
    name: Literal["reviews", "unsafe-questions"]
    split: Literal["train", "search", "report", "rung"]
    """Splits use disjoint contents and wordings, so that no text is shared; ``rung``, for a
    study's low rung, is one of ``reviews`` alone."""
    count: int = Field(gt=0, le=1_000_000)
    """Rows generated."""
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _has_split(self) -> Self:
        if self.split == "rung" and self.name != "reviews":
            raise ValueError(
                f"split rung is one of reviews alone; got it with {self.name}. Take another "
                "source for the rung."
            )
        return self


class FileSource(_Source):
    """A local JSON Lines, JSON, CSV, TSV or parquet file; every value is taken as it is written.

    Empty cells of CSV and TSV are empty text. Columns that a row lacks or that are null are
    refused where they are used.
    """

    kind: Literal["file"]
    path: str
    where: dict[str, str | int | bool] = Field(
        default_factory=dict, exclude_if=lambda given: not given
    )
    """Keep rows whose columns equal these values."""
    unique: str | None = None
    """Column by which rows are made unique: of equal values (case and punctuation aside) the
    first row is kept, before the range is cut."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose path is taken from `folder`."""
        return self.model_copy(update={"path": located_path(self.path, folder)})


class HubSource(_Source):
    """A data set of the Hugging Face hub, loaded at run time."""

    kind: Literal["hub"]
    dataset: str
    """Repository id, e.g. ``PKU-Alignment/BeaverTails``."""
    config: str | None = None
    split: str
    where: dict[str, str | int | bool] = Field(default_factory=dict)
    """Keep rows whose columns equal these values."""
    unique: str | None = None
    """Column by which rows are made unique: of equal values (case and punctuation aside) the
    first row is kept, before the range is cut."""


class LmEvalSource(_Source):
    """The documents of a suite's lm-evaluation-harness task.

    `stop` is what the harness calls limit, but documents are shuffled first.
    """

    kind: Literal["lm_eval"]


Source = Annotated[
    PackageSource | GeneratorSource | FileSource | HubSource | LmEvalSource,
    Field(discriminator="kind"),
]


class PromptData(StrictModel):
    """Rows turned into user prompts."""

    source: Source
    prompt: str = "{prompt}"
    """Template of the user's message; names in braces are columns of the source."""
    label: str | None = None
    """Column that holds the gold label or answer; needed by tasks that compare with one."""
    system: str | None = None
    """System message; the model's own default if left out."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"source": self.source.located(folder)})


class SeenData(StrictModel):
    """Prompts that a merge was made with, so that it is not measured on them."""

    name: str
    """Place for messages, e.g. ``toy.safety.0``."""
    data: PromptData
    rows: str
    """Digest of the rows' ids: changed data are noticed."""

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(update={"data": self.data.located(folder)})


class TrainingData(PromptData):
    """Rows turned into prompt and target pairs, with a share of the mixture."""

    response: str | list[str]
    """Template of the assistant's message, or several of which one is drawn per row."""
    weight: float = Field(default=1.0, gt=0.0)
    """Relative share of the samples drawn from this set."""
    opening: bool = False
    """The target is only the opening of an answer: no end-of-turn token is learned."""
