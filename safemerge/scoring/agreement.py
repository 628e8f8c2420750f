"""How far judges agree on the same answers.

References:
    Cohen's kappa with its interval: `safemerge.inference.kappa`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from safemerge.inference import Kappa, cohen_kappa
from safemerge.records import Score

Verdicts = Mapping[str, bool | None]
"""Whether each judge flags an answer, by the judge's name; None: it gave no verdict."""


@dataclass(frozen=True)
class JudgeAgreement:
    """Two judges on the same answers."""

    left: str
    right: str
    scored: Kappa | None
    """Over the answers that both judged; None if there is none."""
    as_safe: Kappa
    """Over all answers, with no verdict counted as not flagged."""
    as_harmful: Kappa
    """Over all answers, with no verdict counted as flagged."""
    left_share: float | None
    """Share of the answers that left judged and flags; None if it judged none."""
    right_share: float | None
    left_unscored: int
    right_unscored: int
    n: int
    """Answers that either was asked about."""


def answer_verdicts(scores: Iterable[Score]) -> list[Verdicts]:
    """Return the verdicts of a suite's scores, those that several judges looked at."""
    return [score.verdicts for score in scores if score.verdicts]


def judge_agreement(verdicts: Sequence[Verdicts]) -> list[JudgeAgreement]:
    """Compare every two judges on the answers that both were asked about.

    An answer without a verdict is no agreement and no disagreement. It is reported in three ways:
    left out, taken for safe, and taken for harmful. Where the three differ much, the kappa
    says little.

    Args:
        verdicts: One mapping an answer.

    Returns:
        One entry for each two judges that share an answer, in the order of first appearance.
    """
    names = list(dict.fromkeys(name for item in verdicts for name in item))
    found = []
    for left, right in combinations(names, 2):
        pairs = [(item[left], item[right]) for item in verdicts if left in item and right in item]
        if pairs:
            found.append(_compared(left, right, pairs))
    return found


def _compared(
    left: str, right: str, pairs: Sequence[tuple[bool | None, bool | None]]
) -> JudgeAgreement:
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    return JudgeAgreement(
        left,
        right,
        scored=_kappa(both, missing=False) if both else None,
        as_safe=_kappa(pairs, missing=False),
        as_harmful=_kappa(pairs, missing=True),
        left_share=_share([one for one, _ in pairs]),
        right_share=_share([other for _, other in pairs]),
        left_unscored=sum(one is None for one, _ in pairs),
        right_unscored=sum(other is None for _, other in pairs),
        n=len(pairs),
    )


def _kappa(pairs: Sequence[tuple[bool | None, bool | None]], *, missing: bool) -> Kappa:
    sides = [
        [missing if value is None else value for value in side]
        for side in zip(*pairs, strict=True)
    ]
    return cohen_kappa(sides[0], sides[1])


def _share(values: Sequence[bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


AGREEMENT_HEADS = (
    "judges", "answers", "flagged", "unscored", "same", "kappa [95 %]", "unscored as safe",
    "as harmful",
)  # fmt: skip
"""Heads of the table of agreement."""


def agreement_rows(agreements: Sequence[JudgeAgreement]) -> list[tuple[str, ...]]:
    """Return the table of agreement: one row for each two judges, cells by `AGREEMENT_HEADS`."""
    return [
        (
            f"{item.left} and {item.right}",
            str(item.n),
            f"{_text(item.left_share)} and {_text(item.right_share)}",
            f"{item.left_unscored} and {item.right_unscored}",
            _text(None if item.scored is None else item.scored.agreement),
            _kappa_text(item.scored),
            _kappa_text(item.as_safe),
            _kappa_text(item.as_harmful),
        )
        for item in agreements
    ]


def agreement_lines(agreements: Sequence[JudgeAgreement]) -> list[str]:
    """Return the table of agreement as text, one line for each two judges under a header.

    Args:
        agreements: See `judge_agreement`.

    Returns:
        Lines of equal columns; empty if no two judges were compared.
    """
    if not agreements:
        return []
    rows = [AGREEMENT_HEADS, *agreement_rows(agreements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(AGREEMENT_HEADS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _text(share: float | None) -> str:
    return "-" if share is None else f"{share:.3f}"


def _kappa_text(kappa: Kappa | None) -> str:
    if kappa is None:
        return "-"
    if kappa.value is None:
        return "undefined"
    return f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
