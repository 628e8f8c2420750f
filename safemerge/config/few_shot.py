"""Worked examples before a question."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.source import Source


class FewShot(StrictModel):
    """Worked examples, put before each question in the same message."""

    source: Source | None = None
    """Rows taken as examples, in their stable order; `stop` says how many."""
    rows: list[dict[str, str]] | None = Field(default=None, min_length=1)
    """Examples written out instead: value by column."""
    answer: str = "{answer}"
    """Template of an example's answer; its question has the suite's own template."""
    codes: dict[str, str] = Field(default_factory=dict)
    """Text by filled-in answer, where the data hold codes, e.g. ``{"0": A, "1": B}``."""
    before_answer: str = " "
    """Text between question and answer."""
    between: str = "\n\n"
    """Text after the header and after each example."""
    header: str = ""
    """Text before the first example."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.source is None) == (self.rows is None):
            raise ValueError("exactly one of source and rows must be given. Keep one.")
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        if self.source is None:
            return self
        return self.model_copy(update={"source": self.source.located(folder)})
