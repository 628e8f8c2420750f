"""Agreement of two raters beyond chance.

References:
    Cohen, A coefficient of agreement for nominal scales, Educ. Psychol. Meas. 20 (1960).
    Fleiss, Cohen and Everitt, Large sample standard errors of kappa and weighted kappa,
    Psychol. Bull. 72 (1969), equation 13.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from safemerge.errors import ScoringError
from safemerge.inference.share import Z_95


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two raters' yes and no verdicts."""

    value: float | None
    """1 for full agreement, 0 for chance; None if a rater says the same of everything."""
    low: float | None
    """Lower end of the 95 % interval, at least -1."""
    high: float | None
    agreement: float
    """Share of items on which both say the same."""
    n: int


def cohen_kappa(left: Sequence[bool], right: Sequence[bool]) -> Kappa:
    """Return Cohen's kappa of two raters with its large-sample 95 % interval.

    Args:
        left: One rater's verdicts; at least one.
        right: The other's, of the same items in the same order.

    Returns:
        Kappa; undefined (None) where a rater says the same of everything, since it would be 0
        with an interval of no width whatever the other says. At full agreement the
        large-sample interval would be a point; its lower end is then taken from the Wilson
        interval of the agreement.

    Raises:
        ScoringError: If there is no item or the lengths differ.
    """
    n = len(left)
    if n == 0 or len(right) != n:
        raise ScoringError(
            f"kappa: needs the same items from both raters; got {n} and {len(right)}."
        )
    cells = {
        (one, other): sum(a is one and b is other for a, b in zip(left, right, strict=True)) / n
        for one in (False, True)
        for other in (False, True)
    }
    rows = {one: cells[one, False] + cells[one, True] for one in (False, True)}
    columns = {one: cells[False, one] + cells[True, one] for one in (False, True)}
    observed = cells[False, False] + cells[True, True]
    expected = sum(rows[one] * columns[one] for one in (False, True))
    if max(*rows.values(), *columns.values()) >= 1 - 1e-12:
        return Kappa(None, None, None, observed, n)
    kappa = (observed - expected) / (1 - expected)
    if observed >= 1 - 1e-12:
        # One disagreement that was not seen by chance: the Wilson bound of the agreement.
        lowest = n / (n + Z_95**2)
        return Kappa(1.0, (lowest - expected) / (1 - expected), 1.0, 1.0, n)
    diagonal = sum(
        cells[one, one] * (1 - (rows[one] + columns[one]) * (1 - kappa)) ** 2
        for one in (False, True)
    )
    off = (1 - kappa) ** 2 * sum(
        cells[one, not one] * (columns[one] + rows[not one]) ** 2 for one in (False, True)
    )
    variance = diagonal + off - (kappa - expected * (1 - kappa)) ** 2
    half = Z_95 * math.sqrt(max(0.0, variance) / n) / (1 - expected)
    return Kappa(kappa, max(-1.0, kappa - half), min(1.0, kappa + half), observed, n)
