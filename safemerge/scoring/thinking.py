"""Answers of models that think first: what stands behind their thoughts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from safemerge.records import Response, Score

OPEN, CLOSE = "<think>", "</think>"
"""Texts around thoughts, as reasoning models write them."""

UNENDED = "thoughts that did not end within max_tokens"
"""Why an answer is unscored that was cut while the model still thought."""


def behind_thoughts(text: str, *, opened: bool) -> str | None:
    """Return an answer without its thoughts.

    Args:
        text: What a model said.
        opened: Whether the prompt ends inside thoughts that the answer continues.

    Returns:
        The text without every ``<think>...</think>``, stripped; a ``</think>`` without beginning
        ends thoughts that began before. None if thoughts have no end.
    """
    if opened and CLOSE not in text:
        return None
    outside = re.sub(f"{OPEN}.*?{CLOSE}", "", f"{OPEN}{text}" if opened else text, flags=re.DOTALL)
    if OPEN in outside:
        return None
    return outside.rpartition(CLOSE)[2].strip()


def answers_alone(
    responses: Sequence[Response], *, opened: bool
) -> tuple[list[Response], frozenset[str]]:
    """Return responses without their thoughts, and which of them have no answer to be scored.

    An answer that ends while its thoughts have no end is empty: the model said nothing. One that
    was cut there says nothing of the model.

    Args:
        responses: As the engine gave them.
        opened: See `behind_thoughts`.

    Returns:
        All responses, in order, and the sample ids of those that were cut in their thoughts.
    """
    found, cut = [], set()
    for response in responses:
        text = behind_thoughts(response.text, opened=opened)
        if text is None and not response.finished:
            cut.add(response.sample_id)
        found.append(response.model_copy(update={"text": text or ""}))
    return found, frozenset(cut)


def without_cut(scores: Sequence[Score], cut: frozenset[str]) -> list[Score]:
    """Return scores with those samples unscored that were cut in their thoughts."""
    return [
        Score(sample_id=score.sample_id, unscored=UNENDED, group=score.group)
        if score.sample_id in cut
        else score
        for score in scores
    ]
