"""One row of text with a stable identity."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """A source's row before any template is applied."""

    sample_id: str
    """Stable across machines and re-downloads: source name and content hash."""
    columns: dict[str, Any] = field(default_factory=dict)
    number: int = field(default=0, compare=False)
    """Its place in the source, from 1; 0 if that is not known."""

    @property
    def place(self) -> str:
        """What messages call it: its id, and where it stands."""
        return f"{self.sample_id} (row {self.number})" if self.number else self.sample_id


@dataclass(frozen=True)
class Sample:
    """One prompt that a candidate is asked."""

    sample_id: str
    prompt: str
    label: str | None = None
    """Gold label or answer, if the task compares with one."""
    system: str | None = None
    """System message; None for the model's own default."""
    content: str = ""
    """The row's own words in the prompt, without the template's; empty if not known apart."""
    group: str = ""
    """Samples of one group are not independent, e.g. those that share a prompt; empty for a
    sample that stands for itself."""
    endings: tuple[str, ...] = ()
    """Texts of which the right one must be the most probable; `label` is its position, from 0."""

    @property
    def own_text(self) -> str:
        """What is compared with other samples' for near-duplicates."""
        return self.content or self.prompt


@dataclass(frozen=True)
class TrainingSample:
    """One prompt with its target."""

    sample_id: str
    prompt: str
    response: str
    opening: bool = False
    """The target is only the opening of an answer: no end-of-turn token is learned."""
    system: str | None = None


def normalized_text(text: str) -> str:
    """Return text for comparing prompts: NFKC, lower case, letters and digits only.

    Args:
        text: Any text.

    Returns:
        Words joined by single blanks; two prompts that differ in case, punctuation or spacing
        only come out equal.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def sample_id(source: str, content: str) -> str:
    """Return a stable id: the source's name and 12 hex digits of the content's SHA-256."""
    return f"{source}:{hashlib.sha256(content.encode()).hexdigest()[:12]}"
