"""What a candidate is asked, and how its answers are scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name
from safemerge.config.source import PromptData, Source

Direction = Literal["maximize", "minimize"]


class Classification(StrictModel):
    """The most probable of the labels must be the gold one; metric ``accuracy``.

    The answer is one token, chosen greedily among the labels' first tokens, so that a merge is
    never marked down for its format. Labels must differ in their first token.
    """

    kind: Literal["classification"]
    labels: list[str] = Field(min_length=2)
    codes: dict[str, str] = Field(default_factory=dict)
    """Label by value of the gold column, where the data hold numbers or letters for labels,
    e.g. ``{"0": negative, "1": positive}``; a value that is not in it is a label itself."""

    @property
    def max_tokens(self) -> int:
        """Tokens generated for an answer: the label's first one."""
        return 1

    @model_validator(mode="after")
    def _codes_are_labels(self) -> Self:
        for code, label in self.codes.items():
            if label not in self.labels:
                raise ValueError(
                    f"codes.{code}: must be one of the labels; got {label!r}. "
                    f"Labels: {', '.join(self.labels)}."
                )
        return self


class ExactMatch(StrictModel):
    """A pattern's last match in the answer must equal the gold answer; metric ``accuracy``."""

    kind: Literal["exact_match"]
    pattern: str = r"(.+)"
    """Regular expression with one group; its last match, stripped, is compared."""
    max_tokens: int = Field(default=256, gt=0, le=4096)

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"must be a regular expression; got {pattern!r} ({error}).") from None
        if groups != 1:
            raise ValueError(f"must have one group; got {groups} in {pattern!r}.")
        return pattern


class Harm(StrictModel):
    """Unsafe requests.

    Metrics ``harmful_score``, ``refusal_rate``, ``complied_rate``, ``other_rate`` and
    ``incoherent_rate``.
    """

    kind: Literal["harm"]
    judge: Literal["refusal_proxy"] = "refusal_proxy"
    """``refusal_proxy``: the offline refusal detector. It is no harm judge: it counts every
    answer that is not a refusal as harmful, which over-counts harm and rarely misses it."""
    max_tokens: int = Field(default=32, gt=0, le=4096)


class OverRefusal(StrictModel):
    """Benign requests that look edgy; metrics ``over_refusal_rate``, ``incoherent_rate``."""

    kind: Literal["over_refusal"]
    max_tokens: int = Field(default=32, gt=0, le=4096)


Task = Annotated[Classification | ExactMatch | Harm | OverRefusal, Field(discriminator="kind")]

METRICS: dict[str, dict[str, Direction]] = {
    "classification": {"accuracy": "maximize"},
    "exact_match": {"accuracy": "maximize"},
    "harm": {
        "harmful_score": "minimize",
        "refusal_rate": "maximize",
        "complied_rate": "minimize",
        "other_rate": "minimize",
        "incoherent_rate": "minimize",
    },
    "over_refusal": {"over_refusal_rate": "minimize", "incoherent_rate": "minimize"},
}
"""Metric names of each task kind, all shares in [0, 1], with the better direction."""


class FewShot(StrictModel):
    """Worked examples, put before each question in the same message."""

    source: Source | None = None
    """Rows taken as examples, in their stable order; `stop` says how many."""
    rows: list[dict[str, str]] | None = Field(default=None, min_length=1)
    """Examples written out instead: value by column."""
    answer: str = "{answer}"
    """Template of an example's answer; its question has the suite's own template."""
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


class SuiteSpec(StrictModel):
    """One named set of prompts with its scoring, on two disjoint splits."""

    name: Name
    task: Task
    search: PromptData
    """Prompts used during the search."""
    report: PromptData
    """Prompts used once, for the front: disjoint from `search` by id and by text."""
    few_shot: FewShot | None = None
    """Worked examples before each question; none if left out."""
    group: str | None = None
    """Column whose equal values mark samples that are not independent (paraphrases of one
    request, say): intervals widen for it. Samples with the same prompt always are a group."""
    max_similarity: float | None = Field(default=0.8, gt=0.0, le=1.0)
    """A report prompt this similar to a prompt of the search, or to a training prompt of the
    study's own stages, is refused: Jaccard index of character 5-grams, the template's fixed
    words aside. 0.8 catches the same request in slightly other words. null: only equal prompts
    are refused (for data that are alike by nature, e.g. sums that differ in a number)."""

    @model_validator(mode="after")
    def _labels(self) -> Self:
        if isinstance(self.task, Classification | ExactMatch):
            for split in ("search", "report"):
                if getattr(self, split).label is None:
                    raise ValueError(
                        f"{split}.label must name the gold column for a {self.task.kind} task."
                    )
        return self

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        return self.model_copy(
            update={
                "search": self.search.located(folder),
                "report": self.report.located(folder),
                "few_shot": self.few_shot and self.few_shot.located(folder),
            }
        )

    def metric_names(self) -> list[str]:
        """Full metric names, e.g. ``sentiment.accuracy``."""
        return [f"{self.name}.{metric}" for metric in METRICS[self.task.kind]]
