"""Multiple choice by log-probability: the most probable of the given endings is the answer.

References:
    Gao et al., A framework for few-shot language model evaluation (lm-evaluation-harness),
    v0.4: ``acc`` compares sums of token log-probabilities, ``acc_norm`` divides each by the
    ending's length in characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from safemerge.config.suite import Choice
from safemerge.data.sample import Sample
from safemerge.engines.engine import Likelihood
from safemerge.errors import ScoringError
from safemerge.records import Score


def choose(
    logprobs: Sequence[float],
    *,
    endings: Sequence[str] = (),
    normalize: Literal["none", "characters"] = "none",
) -> int:
    """Return the position of the most probable ending; the first of equal ones.

    Args:
        logprobs: Natural log-probability of each ending given the question, summed over the
            ending's tokens; at least two.
        endings: The endings' texts; needed for normalising.
        normalize: ``characters`` divides by an ending's length in characters.

    Returns:
        Position, from 0.

    Raises:
        ScoringError: If there are fewer than two, one is above 0 or not a number, or an ending
            is missing or empty.
    """
    if len(logprobs) < 2 or any(not value <= 0.0 for value in logprobs):
        raise ScoringError(
            f"choice: needs two or more log-probabilities of 0 or less; got {list(logprobs)}."
        )
    values = list(logprobs)
    if normalize == "characters":
        if len(endings) != len(values) or not all(endings):
            raise ScoringError(
                f"choice: every ending must have a text; got {len(endings)} for {len(values)}."
            )
        values = [value / len(text) for value, text in zip(values, endings, strict=True)]
    return max(range(len(values)), key=lambda index: (values[index], -index))


def choice_values(
    logprobs: Sequence[float],
    *,
    endings: Sequence[str],
    gold: int,
    normalize: Literal["none", "characters"] = "none",
) -> dict[str, float]:
    """Score one question.

    Args:
        logprobs: See `choose`.
        endings: The endings' texts.
        gold: Position of the right one, from 0.
        normalize: See `choose`.

    Returns:
        ``accuracy``: 1 if the right ending is chosen, else 0; ``gold_probability``: the right
        ending's share of the endings' probability, in [0, 1], higher is better (a smoother
        signal than the first).

    Raises:
        ScoringError: If `gold` is no position, or see `choose`.
    """
    if not 0 <= gold < len(logprobs):
        raise ScoringError(f"choice: gold must be a position; got {gold} of {len(logprobs)}.")
    chosen = choose(logprobs, endings=endings, normalize=normalize)
    top = max(logprobs)
    if math.isinf(top):
        raise ScoringError("choice: one ending at least must be possible; got none.")
    total = math.fsum(math.exp(value - top) for value in logprobs)
    return {
        "accuracy": float(chosen == gold),
        "gold_probability": math.exp(logprobs[gold] - top) / total,
    }


def score_choices(
    task: Choice, samples: Sequence[Sample], likelihoods: Sequence[Likelihood]
) -> list[Score]:
    """Score the questions of one suite, in the samples' order.

    Args:
        task: The suite's task.
        samples: What was asked.
        likelihoods: One per ending, those of one sample together, in the samples' order.

    Returns:
        One score per sample; see `choice_values`.

    Raises:
        ScoringError: If a likelihood is missing, or belongs to another sample; or see `choose`.
    """
    asked = [sample.sample_id for sample in samples for _ in sample.endings]
    if asked != [item.sample_id for item in likelihoods]:
        raise ScoringError(
            f"choice: every ending must have one log-probability, in order; got "
            f"{len(likelihoods)} for {len(asked)}."
        )
    scores, first = [], 0
    for sample in samples:
        found = likelihoods[first : first + len(sample.endings)]
        first += len(found)
        values = choice_values(
            [item.logprob for item in found],
            endings=sample.endings,
            gold=int(sample.label or -1),
            normalize=task.normalize,
        )
        scores.append(Score(sample_id=sample.sample_id, values=values))
    return scores
