"""D_safety and D_expert: declared sets of prompt and answer as token rows, and how they weigh."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safemerge.config.source import TrainingData
from safemerge.data.rows import load_training_samples
from safemerge.engines.chat import ChatFormat
from safemerge.optimize.spec import OptimizeSpec
from safemerge.training.batch import CutRows, EncodedSample, TokenBatch, collate, encode

SETS = ("safety", "expert")
"""The two sets, in the order of every pair of losses."""


@dataclass(frozen=True)
class WeightedRow:
    """One row and its share of the mean over its set."""

    sample: EncodedSample
    share: float
    """Shares of a set's rows sum to 1."""


@dataclass(frozen=True)
class PairSet:
    """D_safety or D_expert: every row once, with its share."""

    rows: tuple[WeightedRow, ...]

    def batches(
        self, *, batch_size: int, steps: int, seed: str, rank: int = 0, world_size: int = 1
    ) -> Iterator[list[EncodedSample]]:
        """Yield this worker's rows of each step's batch, drawn with replacement by share.

        The joined batch of all ranks does not depend on how many there are.

        Args:
            batch_size: Rows a step over all ranks.
            steps: Batches to yield.
            seed: Seed of the draws.
            rank: This worker.
            world_size: Workers; each takes every world_size-th row.
        """
        generator = random.Random(f"pairs/{seed}")
        samples = [row.sample for row in self.rows]
        shares = [row.share for row in self.rows]
        for _ in range(steps):
            drawn = generator.choices(samples, weights=shares, k=batch_size)
            drawn.sort(key=lambda sample: len(sample.ids))
            yield drawn[rank::world_size]

    def chunks(
        self, *, rows_at_once: int, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[TokenBatch, list[float]]]:
        """Yield this worker's rows of the whole set as batches of like lengths, with shares.

        Args:
            rows_at_once: Most rows in a batch.
            rank: This worker.
            world_size: Workers; each takes every world_size-th row.
        """
        ordered = sorted(self.rows, key=lambda row: len(row.sample.ids))[rank::world_size]
        for start in range(0, len(ordered), rows_at_once):
            rows = ordered[start : start + rows_at_once]
            yield collate([row.sample for row in rows]), [row.share for row in rows]

    def without_answers(self) -> PairSet:
        """Return the prompts alone, each with one place holder where its answer begins."""
        return PairSet(
            tuple(WeightedRow(_prompt_only(row.sample), row.share) for row in self.rows)
        )


@dataclass(frozen=True)
class Pairs:
    """What an optimisation sees."""

    safety: PairSet
    expert: PairSet
    cut: tuple[CutRows, ...] = ()
    """Sets with rows that were cut at `max_tokens`."""

    @property
    def sets(self) -> tuple[PairSet, PairSet]:
        """In the order of `SETS`."""
        return self.safety, self.expert


def load_pairs(spec: OptimizeSpec, chat: ChatFormat) -> Pairs:
    """Read, template and tokenise both sets.

    Of several sources each has its weight over the sum as share, its rows equal parts of it.

    Args:
        spec: The declared optimisation.
        chat: The base's chat format.

    Returns:
        Both sets; for the entropy objective without answers.

    Raises:
        DataError: If a source is unreadable or empty, or a prompt alone fills `max_tokens`.
    """
    sets = [_load_set(getattr(spec, key), spec, chat, where=f"{spec.name}: {key}") for key in SETS]
    if spec.objective == "entropy":
        sets = [item.without_answers() for item in sets]  # so that nothing read is cut
    counts = [
        CutRows.of(key, [row.sample for row in item.rows])
        for key, item in zip(SETS, sets, strict=True)
    ]
    safety, expert = sets
    return Pairs(safety, expert, cut=tuple(count for count in counts if count.num_cut))


def _load_set(
    sources: Sequence[TrainingData], spec: OptimizeSpec, chat: ChatFormat, *, where: str
) -> PairSet:
    total = sum(item.weight for item in sources)
    rows: list[WeightedRow] = []
    for index, item in enumerate(sources):
        samples = load_training_samples(item, where=f"{where}.{index}", seed=spec.seed)
        share = item.weight / total / len(samples)
        rows += [WeightedRow(encode(sample, chat, spec.max_tokens), share) for sample in samples]
    return PairSet(tuple(rows))


def _prompt_only(sample: EncodedSample) -> EncodedSample:
    # The place holder's own token is never seen: it stands behind the last place that is read.
    return EncodedSample((*sample.ids[: sample.num_prompt], 0), sample.num_prompt)
