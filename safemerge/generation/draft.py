"""Asking a model for a question, and finding the question in what it says."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from safemerge.generation.record import Ask
from safemerge.generation.spec import WriterSpec

MIN_WORDS = 3
"""A line of fewer words is no question."""

_MARKS = re.compile(r"^(?:[-*•>\s]+|\(?\d{1,3}[.):]\s*|(?:question|q)\s*\d*\s*[:.)]\s*)+", re.I)
_QUOTES = "\"'`*\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"


def draft_ask(
    writer: WriterSpec,
    attempt: int,
    *,
    prompt: str,
    topics: Sequence[str],
    examples: Sequence[str],
    seed: str,
) -> tuple[Ask, str]:
    """Return the prompt of one draft, and its topic.

    Args:
        writer: Settings of the sampling.
        attempt: Number of the draft, from 0.
        prompt: Template with ``{topic}`` and ``{examples}``.
        topics: One is drawn.
        examples: `WriterSpec.num_examples` of them are drawn without replacement.
        seed: With the attempt's number, all that the draws hang on.
    """
    drawn = random.Random(f"{seed}/{attempt}")
    topic = drawn.choice(topics)
    shown = drawn.sample(list(examples), min(writer.num_examples, len(examples)))
    ask = Ask(
        id=f"draft-{attempt}",
        prompt=prompt.format(topic=topic, examples="\n".join(f"- {text}" for text in shown)),
        system=writer.system,
        max_tokens=writer.max_tokens,
        temperature=writer.temperature,
        top_p=writer.top_p,
        seed=drawn.getrandbits(48),
    )
    return ask, topic


def drafted_question(text: str, *, finished: bool) -> str | None:
    """Return the question of a draft: its first line, without list marks and quotes.

    Whatever a writer adds behind the first line (an answer, say) is dropped here.

    Args:
        text: What the writer said.
        finished: False if it was cut at the token limit.

    Returns:
        The question; None if there is none, or it was cut.
    """
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines or (len(lines) == 1 and not finished):
        return None
    line = _MARKS.sub("", lines[0]).strip().strip(_QUOTES).strip()
    return line if len(re.findall(r"\w+", line)) >= MIN_WORDS else None
