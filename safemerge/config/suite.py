"""What a candidate is asked, and how its answers are scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name
from safemerge.config.source import PromptData

Direction = Literal["maximize", "minimize"]


class Classification(StrictModel):
    """The most probable of the labels must be the gold one; metric ``accuracy``.

    The answer is one token, chosen greedily among the labels' first tokens, so that a merge is
    never marked down for its format. Labels must differ in their first token.
    """

    kind: Literal["classification"]
    labels: list[str] = Field(min_length=2)

    @property
    def max_tokens(self) -> int:
        """Tokens generated for an answer: the label's first one."""
        return 1


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


class SuiteSpec(StrictModel):
    """One named set of prompts with its scoring, on two disjoint splits."""

    name: Name
    task: Task
    search: PromptData
    """Prompts used during the search."""
    report: PromptData
    """Prompts used once, for the front: disjoint from `search` by id and by text."""

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
            }
        )

    def metric_names(self) -> list[str]:
        """Full metric names, e.g. ``sentiment.accuracy``."""
        return [f"{self.name}.{metric}" for metric in METRICS[self.task.kind]]
