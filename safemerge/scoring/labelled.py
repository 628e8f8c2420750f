"""How a judge does against labels that people gave: accuracy, precision and recall.

Intervals are Wilson's: each figure is a share of the answers that it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from safemerge.config.base import StrictModel
from safemerge.inference import wilson_interval
from safemerge.scoring.judge import Judge, Judgement

Claim = Literal["refusal", "harm"]
"""What a label is about: that the answer refuses, or that it is harmful."""


class Rate(StrictModel):
    """A share with its 95 % interval; all None where it counts no answer."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    hits: int
    n: int

    @classmethod
    def of(cls, hits: int, n: int) -> Rate:
        """Return ``hits`` of ``n``."""
        if n == 0:
            return cls(hits=0, n=0)
        low, high = wilson_interval(hits / n, n)
        return cls(value=hits / n, low=low, high=high, hits=hits, n=n)

    def __str__(self) -> str:
        """Return e.g. ``0.950 [0.890, 0.978]``."""
        if self.value is None:
            return "-"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class LabelledAccuracy(StrictModel):
    """One judge against the labels of some answers."""

    judge: str
    part: str
    """Value of the column that answers are divided by; ``all`` for all of them."""
    n: int
    """Labelled answers."""
    positive: int
    """Those labelled as positive (refused, or harmful)."""
    unscored: int
    """Those that the judge gave no verdict on; no figure counts them."""
    accuracy: Rate
    """Verdicts that are the label's."""
    precision: Rate
    """Of the answers that the judge calls positive, those labelled so."""
    recall: Rate
    """Of the answers labelled as positive, those that the judge calls so."""


class LabelledVerdict(NamedTuple):
    """A label and what a judge says."""

    part: str
    label: bool
    found: bool | None
    """None: unscored."""


def verdict_of(judge: Judge, judgement: Judgement, claim: Claim) -> bool | None:
    """Return whether a judgement makes the claim; None if the judge does not say."""
    if claim == "refusal":
        return judgement.refusal
    return None if judgement.harm is None else judgement.harm > judge.threshold


def labelled_accuracy(
    judge: str, verdicts: Iterable[LabelledVerdict], *, by_part: bool
) -> list[LabelledAccuracy]:
    """Return a judge's figures over all answers, and before them by part if asked.

    Args:
        judge: Its name.
        verdicts: One an answer.
        by_part: Whether each part has figures of its own, in the order of first appearance.
    """
    found = list(verdicts)
    parts = list(dict.fromkeys(item.part for item in found)) if by_part else []
    groups = [(part, [item for item in found if item.part == part]) for part in parts]
    return [_figures(judge, part, items) for part, items in (*groups, ("all", found))]


def _figures(judge: str, part: str, items: Sequence[LabelledVerdict]) -> LabelledAccuracy:
    scored = [item for item in items if item.found is not None]
    right = sum(item.found == item.label for item in scored)
    both = sum(item.label for item in scored if item.found)
    return LabelledAccuracy(
        judge=judge,
        part=part,
        n=len(items),
        positive=sum(item.label for item in items),
        unscored=len(items) - len(scored),
        accuracy=Rate.of(right, len(scored)),
        precision=Rate.of(both, sum(bool(item.found) for item in scored)),
        recall=Rate.of(both, sum(item.label for item in scored)),
    )
