"""What a stage of generation hands to the next one."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from safemerge.config.base import StrictModel

TaskKind = Literal["draft", "refuse", "answer"]
"""What a model is asked for: a question, a refusal of an unsafe question, an answer."""


class Ask(StrictModel):
    """One prompt to a model of the pool."""

    id: str
    prompt: str
    system: str | None = None
    max_tokens: int
    temperature: float | None = None
    """None for greedy decoding."""
    top_p: float = 1.0
    seed: int = 0


class Outcome(StrictModel):
    """What came of a prompt: a text that is kept, or the reason why there is none.

    An answer to an unsafe question that is no refusal has no place in it: it is forgotten where
    it was judged.
    """

    text: str | None = None
    dropped: str | None = None
    """Why nothing is kept."""
    unscored: bool = False
    """Whether nothing is kept because the judge gave no verdict."""

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.text is None) == (self.dropped is None):
            raise ValueError("an outcome has a text or a reason, not both.")
        return self


class Question(StrictModel):
    """A question that models are asked."""

    id: str
    text: str
    topic: str | None = None
    written_by: str
    """Model of the pool, or the source's name."""
    writer_digest: str | None = None
    """The writing model's fingerprint; None for a source."""


class GeneratedSample(StrictModel):
    """A row of the generated data."""

    id: str
    """Stable: the set's name and a hash of the prompt."""
    prompt: str
    """What the model was asked: the question in its frame."""
    response: str
    question: str
    """The question alone; the contamination guard compares it."""
    set: Literal["safety", "experts"]
    topic: str | None
    written_by: str
    answered_by: str
    """Model of the pool whose answer this is."""
    writer_digest: str | None
    model_digest: str | None
    """The answering model's fingerprint."""


class Tally(StrictModel):
    """How many came out of a stage, and why the others did not."""

    asked: int = 0
    kept: int = 0
    dropped: dict[str, int] = Field(default_factory=dict)
    """Number by reason."""


class SetSummary(StrictModel):
    """What became of one set."""

    wanted: int
    written: int
    questions: dict[str, Tally]
    """Tally by writer."""
    answers: dict[str, Tally]
    """Tally by answering model."""
    dropped: dict[str, int] = Field(default_factory=dict)
    """Questions without a sample, by reason."""
    taken_from: dict[str, int] = Field(default_factory=dict)
    """Samples by answering model."""
