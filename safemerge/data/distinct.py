"""Telling apart what is asked already: equal texts and near-duplicates, in the order they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from safemerge.data.overlap import near_duplicates
from safemerge.data.sample import normalized_text

Repeat = Literal["copy of an example", "near-copy of an example", "duplicate", "near-duplicate"]
"""Why a text is dropped."""

_PART = 64


class DistinctTexts:
    """Texts kept so far; each new one is kept, or it is said what it repeats.

    Whether a text is kept depends on those before it, and not on how they are cut into batches.

    Args:
        examples: Texts that must not be copied; they are not kept themselves.
        threshold: Smallest similarity of a near-duplicate, see `near_duplicates`; None: only
            equal texts (case and punctuation aside) are reported.
    """

    def __init__(self, examples: Sequence[str] = (), *, threshold: float | None) -> None:
        self.threshold = threshold
        """See the arguments."""
        self._examples = list(examples)
        self._equal_examples = {normalized_text(text) for text in examples}
        self._equal: set[str] = set()
        self.kept: list[str] = []
        """Texts kept, in order."""

    def add(self, texts: Sequence[str]) -> list[Repeat | None]:
        """Take texts in their order.

        Args:
            texts: New texts.

        Returns:
            For each text None if it is kept, else what it repeats.
        """
        # Within a part every text is compared with those before it, one by one.
        parts = [texts[start : start + _PART] for start in range(0, len(texts), _PART)]
        return [repeat for part in parts for repeat in self._add(part)]

    def _add(self, texts: Sequence[str]) -> list[Repeat | None]:
        near_examples = self._near(self._examples, texts)
        near_kept = self._near(self.kept, texts)
        found: list[Repeat | None] = []
        fresh: list[str] = []
        for index, text in enumerate(texts):
            same = normalized_text(text)
            repeat: Repeat | None = None
            if same in self._equal_examples:
                repeat = "copy of an example"
            elif same in self._equal:
                repeat = "duplicate"
            elif index in near_examples:
                repeat = "near-copy of an example"
            elif index in near_kept or self._near(fresh, [text]):
                repeat = "near-duplicate"
            if repeat is None:
                self._equal.add(same)
                fresh.append(text)
            found.append(repeat)
        self.kept += fresh
        return found

    def _near(self, left: Sequence[str], right: Sequence[str]) -> set[int]:
        if self.threshold is None:
            return set()
        return {item.right for item in near_duplicates(left, right, threshold=self.threshold)}
