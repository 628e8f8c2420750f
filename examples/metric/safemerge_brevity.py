"""Metrics of their own: how long answers are, and whether right ones are short too."""

from collections.abc import Sequence

from safemerge.extension import Answer, metric

MAX_WORDS = 20


@metric(direction="minimize", role="skill", unit="number")
def num_words(answers: Sequence[Answer]) -> list[float]:
    """Mean number of words of an answer."""
    return [float(len((answer.text or "").split())) for answer in answers]


@metric(direction="maximize", role="skill")
def brief_and_right(answers: Sequence[Answer]) -> list[float]:
    """Share of answers that are right and have at most 20 words."""
    short = [len((answer.text or "").split()) <= MAX_WORDS for answer in answers]
    return [
        answer.score.values["accuracy"] * is_short
        for answer, is_short in zip(answers, short, strict=True)
    ]
