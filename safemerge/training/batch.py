"""Training samples to token batches: mixtures by weight, little padding, any number of ranks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from safemerge.config.alignment import AlignSpec, UntilSpec
from safemerge.config.source import TrainingData
from safemerge.config.training import FinetuneSpec
from safemerge.data.rows import load_samples, load_training_samples
from safemerge.data.sample import TrainingSample, normalized_text
from safemerge.engines.chat import ChatFormat
from safemerge.errors import DataError
from safemerge.training.packing import PackedRows, pack

IGNORED = -100
"""Label of positions without a loss (prompt and padding)."""

BUCKET_BATCHES = 8
"""Batches that are drawn together and sorted by length, so that little is padded."""


@dataclass(frozen=True)
class EncodedSample:
    """Token ids of prompt and target, and how many of them are prompt."""

    ids: tuple[int, ...]
    num_prompt: int
    is_cut: bool = False
    """Whether it was longer than `max_tokens`."""
    loses_end: bool = False
    """Whether the end of turn was cut off: the row teaches nothing about where to stop."""


@dataclass(frozen=True)
class CutRows:
    """Rows of one data set that were cut at `max_tokens`."""

    place: str
    """Where the set stands in its file, e.g. ``data.0``."""
    num_rows: int
    num_cut: int
    num_without_end: int

    @classmethod
    def of(cls, place: str, rows: Sequence[EncodedSample]) -> CutRows:
        """Count a set's rows."""
        cut, without_end = (
            sum(getattr(row, key) for row in rows) for key in ("is_cut", "loses_end")
        )
        return cls(place, len(rows), cut, without_end)

    @property
    def words(self) -> str:
        """The counts in a sentence."""
        return (
            f"{self.place}: {self.num_cut} of {self.num_rows} rows are longer than max_tokens and "
            f"cut there; {self.num_without_end} of them lose their end of turn"
        )


@dataclass(frozen=True)
class TokenBatch:
    """A padded batch."""

    input_ids: Tensor
    """int64, (rows, tokens)."""
    attention_mask: Tensor
    """int64, (rows, tokens): 1 for real tokens."""
    labels: Tensor
    """int64, (rows, tokens): token ids on targets, `IGNORED` elsewhere."""
    num_shared: int = 0
    """Leading tokens that all rows share and that carry no loss; computed once a batch."""
    joined_targets: int | None = None
    """Target tokens of the step's rows on all ranks; None where nobody counted."""

    @property
    def num_tokens(self) -> int:
        """Real tokens in the batch."""
        return int(self.attention_mask.sum())

    @cached_property
    def packed(self) -> PackedRows:
        """The rows laid end to end."""
        return pack(
            self.input_ids,
            self.attention_mask.sum(dim=1).tolist(),
            self.labels,
            num_shared=self.num_shared,
            ignored=IGNORED,
        )

    def to(self, device: str) -> TokenBatch:
        """Return the batch on a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
        )


@dataclass(frozen=True)
class Mixture:
    """Encoded data sets with their sampling weights."""

    sets: tuple[tuple[EncodedSample, ...], ...]
    weights: tuple[float, ...]
    sizes: tuple[int, ...]
    """Rows per set, for the record."""
    second: Mixture | None = None
    """What the method draws beside: harmful data of an alignment, alignment data of Lisa."""
    test: tuple[EncodedSample, ...] = ()
    """Held-out harmful rows, only measured."""
    asked: tuple[tuple[int, ...], ...] = ()
    """Token ids of the held-out requests that end a stage by their refusal."""
    cut: tuple[CutRows, ...] = ()
    """Sets with rows that were cut, those of `second` and `test` among them."""


def load_mixture(spec: FinetuneSpec | AlignSpec, chat: ChatFormat) -> Mixture:
    """Read, template and tokenise the data of a stage.

    With poison ratio p the harmful set is drawn with probability p and the others share 1 - p
    by their weights.

    Raises:
        DataError: If a set is unreadable, empty or without a target token, a prompt alone fills
            `max_tokens`, or the data of a method share a prompt that must be kept apart.
    """
    parts = [(f"data.{index}", item, item.weight) for index, item in enumerate(spec.data)]
    total = sum(weight for _, _, weight in parts)
    parts = [(where, item, weight / total) for where, item, weight in parts]
    poison = getattr(spec, "poison", None)
    if poison is not None:
        parts = [(where, item, weight * (1 - poison.ratio)) for where, item, weight in parts]
        parts.append(("poison.data", poison.data, poison.ratio))
    seen: dict[str, str] = {}
    mixture = _load_sets(parts, spec, chat, seen)
    mixture = _with_second(mixture, spec, chat, seen)
    if not isinstance(spec, AlignSpec) or spec.until is None:
        return mixture
    return replace(mixture, asked=_asked(spec.until, spec.name, chat, seen))


def _with_second(
    mixture: Mixture, spec: FinetuneSpec | AlignSpec, chat: ChatFormat, seen: dict[str, str]
) -> Mixture:
    """Add what the method draws beside; its prompts go into `seen`."""
    section = "harmful" if isinstance(spec, AlignSpec) else "lisa"
    declared = getattr(spec, section, None)
    if declared is None:
        return mixture
    apart = dict(seen)
    parts = [
        (f"{section}.data.{index}", item, item.weight) for index, item in enumerate(declared.data)
    ]
    second = _load_sets(parts, spec, chat, seen, apart=apart)
    test = [
        (f"{section}.test.{index}", item, item.weight)
        for index, item in enumerate(getattr(declared, "test", ()))
    ]
    tested: dict[str, str] = {}
    held_out = _load_sets(test, spec, chat, tested, apart=seen)
    seen.update(tested)
    return replace(
        mixture,
        second=second,
        test=sum(held_out.sets, ()),
        cut=mixture.cut + second.cut + held_out.cut,
    )


def _asked(
    until: UntilSpec, name: str, chat: ChatFormat, apart: Mapping[str, str]
) -> tuple[tuple[int, ...], ...]:
    found = []
    for index, prompts in enumerate(until.prompts):
        where = f"{name}: until.prompts.{index}"
        samples = load_samples(prompts, where=where)
        _refuse_shared([sample.prompt for sample in samples], apart, where)
        found += [
            tuple(chat.prompt_ids(sample.prompt, system=sample.system)) for sample in samples
        ]
    return tuple(found)


def _refuse_shared(prompts: Sequence[str], apart: Mapping[str, str], where: str) -> list[str]:
    """Return prompts as they are compared; refuse those that are in `apart`."""
    text = [normalized_text(prompt) or prompt for prompt in prompts]
    shared = [prompt for prompt in text if prompt in apart]
    if shared:
        raise DataError(
            f"{where}: must share no prompt with {apart[shared[0]]}; got {len(shared)} of "
            f"{len(text)} prompts in both, e.g. {shared[0][:60]!r}. Take ranges of rows that do "
            "not overlap."
        )
    return text


def _load_sets(
    parts: Sequence[tuple[str, TrainingData, float]],
    spec: FinetuneSpec | AlignSpec,
    chat: ChatFormat,
    seen: dict[str, str],
    *,
    apart: Mapping[str, str] = MappingProxyType({}),
) -> Mixture:
    """Load sets, write their prompts into `seen`, and refuse prompts that are in `apart`."""
    sets = []
    for where, item, _ in parts:
        samples = load_training_samples(item, where=f"{spec.name}: {where}", seed=spec.seed)
        prompts = _refuse_shared([s.prompt for s in samples], apart, f"{spec.name}: {where}")
        seen.update(dict.fromkeys(prompts, where))
        rows = tuple(encode(sample, chat, spec.max_tokens) for sample in samples)
        if all(len(row.ids) == row.num_prompt for row in rows):
            raise DataError(
                f"{spec.name}: {where}: some target token must carry a loss; got none in "
                f"{len(rows)} rows. Check the response template."
            )
        sets.append(rows)
    counts = [CutRows.of(where, rows) for (where, _, _), rows in zip(parts, sets, strict=True)]
    return Mixture(
        tuple(sets),
        tuple(weight for _, _, weight in parts),
        tuple(len(rows) for rows in sets),
        cut=tuple(count for count in counts if count.num_cut),
    )


def encode(sample: TrainingSample, chat: ChatFormat, max_tokens: int | None) -> EncodedSample:
    """Tokenise one sample in the chat format; the target ends with the end-of-turn token.

    Args:
        sample: Prompt and target.
        chat: The model's chat format.
        max_tokens: Longer rows are cut at the end; None to keep them whole.

    Raises:
        DataError: If the prompt leaves no room for a target token.
    """
    prompt = chat.prompt_ids(sample.prompt, system=sample.system)
    target = list(chat.tokenizer(sample.response, add_special_tokens=False)["input_ids"])
    if not sample.opening:
        target.append(chat.end_of_turn_id())
    if max_tokens is not None and len(prompt) >= max_tokens:
        raise DataError(
            f"training data: a prompt must leave room for its target within max_tokens; got "
            f"{len(prompt)} of {max_tokens} for {sample.sample_id}. Raise max_tokens."
        )
    ids = prompt + target
    is_cut = max_tokens is not None and len(ids) > max_tokens
    return EncodedSample(
        tuple(ids[:max_tokens]), len(prompt), is_cut, loses_end=is_cut and not sample.opening
    )


def batches(
    mixture: Mixture, *, batch_size: int, steps: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[TokenBatch]:
    """Yield the stage's batches, the same for every run with this seed.

    Samples are drawn with replacement: the set by its weight, the row uniformly. The joined
    batch of all ranks does not depend on how many there are.

    Args:
        mixture: What `load_mixture` returned.
        batch_size: Rows a step over all ranks.
        steps: Batches to yield.
        seed: Seed of the draws.
        rank: This worker.
        world_size: Workers; each takes every world_size-th row.
    """
    generator = random.Random(f"batches/{seed}")
    for start in range(0, steps, BUCKET_BATCHES):
        count = min(BUCKET_BATCHES, steps - start)
        drawn = [
            generator.choice(generator.choices(mixture.sets, weights=mixture.weights)[0])
            for _ in range(count * batch_size)
        ]
        drawn.sort(key=lambda sample: len(sample.ids))
        order = list(range(count))
        generator.shuffle(order)
        for index in order:
            rows = drawn[index * batch_size : (index + 1) * batch_size]
            # A row's targets are what follows its prompt, the first token of all left out.
            targets = sum(len(row.ids) - max(1, row.num_prompt) for row in rows)
            yield replace(collate(rows[rank::world_size]), joined_targets=targets)


def collate(rows: Sequence[EncodedSample]) -> TokenBatch:
    """Pad rows on the right to the longest, and count the tokens that all rows begin with.

    The last prompt token predicts the first target, so it is never counted as shared.
    """
    longest = max((len(row.ids) for row in rows), default=1)
    input_ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.ids)
        input_ids[index, : len(ids)] = ids
        mask[index, : len(ids)] = 1
        labels[index, row.num_prompt : len(ids)] = ids[row.num_prompt :]
    limit = min((row.num_prompt for row in rows), default=1) - 1
    same = (input_ids[:, :limit] == input_ids[:1, :limit]).all(dim=0)
    num_shared = int(same.long().cumprod(dim=0).sum()) if len(rows) > 1 else 0
    return TokenBatch(input_ids, mask, labels, num_shared)
