"""A low rung of a search: what a sampled recipe must pass before it answers a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name
from safemerge.config.source import PromptData, TrainingData


class RungSpec(StrictModel):
    """Pairs of prompt and right answer that every candidate is scored on first, cheaply.

    The loss on a set is the mean cross-entropy of its answers, in nats a token: one forward
    pass, nothing is generated. A sampled recipe is pruned there if a feasible scored candidate
    (reference points take part) has a lower loss on every set, each by a paired test on the
    same rows. What is pruned is never on the front, counts among `num_trials`, and has no values
    to learn from: nothing is pruned before `sampler.startup` sampled recipes were scored and
    feasible. Reference points and warm starts are never pruned.

    References:
        Hammoud et al., arXiv:2406.14563, section 3.2 (the loss); Li et al., ASHA,
        arXiv:1810.05934 (promotion without waiting). Departures: dominance instead of a rank,
        for there are several losses; a test instead of a quota.
    """

    sets: dict[Name, list[TrainingData]] = Field(min_length=1)
    """By name, best one for each objective: refusals of unsafe prompts for harm, right answers
    of its tasks for skill. The more sets, the less is pruned."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Level of the tests, two-sided, after Holm over the candidates compared with."""
    margin: float = Field(default=0.0, ge=0)
    """How much lower each loss must at least be, in nats a token."""
    audit: float = Field(default=0.1, ge=0, le=1)
    """Share of those that are to be pruned, drawn by seed and candidate, that are scored all the
    same: the report tells what became of them, and so what the rung costs."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        empty = [name for name, sources in self.sets.items() if not sources]
        if empty:
            raise ValueError(f"sets must have a source each; got none for {', '.join(empty)}.")
        return self

    @property
    def prompt_sets(self) -> dict[str, PromptData]:
        """Every source by its place for messages, e.g. ``rung.safety.0``."""
        return {
            f"rung.{name}.{index}": source
            for name, sources in self.sets.items()
            for index, source in enumerate(sources)
        }

    def weights(self, name: str) -> list[float]:
        """Return the weights of a set's sources; they sum to 1."""
        given = [source.weight for source in self.sets[name]]
        return [weight / sum(given) for weight in given]

    def means(self, losses: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
        """Return a candidate's loss on each set: the weighted mean over its sources.

        Args:
            losses: Nats a target token of each row, by set, then by source.
        """
        return {
            name: math.fsum(
                weight * math.fsum(rows) / len(rows)
                for weight, rows in zip(self.weights(name), losses[name], strict=True)
            )
            for name in self.sets
        }

    def located(self, folder: Path) -> Self:
        """Return a copy whose relative file references are taken from `folder`."""
        sets = {
            name: [source.located(folder) for source in sources]
            for name, sources in self.sets.items()
        }
        return self.model_copy(update={"sets": sets})
