"""Numbers in answers: which one is meant, and whether two are the same.

References:
    Cobbe et al., GSM8K, arXiv:2110.14168: the gold answer stands behind ``####``. The last
    number of an answer without a marker is the fallback of Huang et al., Booster,
    arXiv:2409.01586, evaluation.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_NUMBER = re.compile(r"(?<![\w.])[-+\N{MINUS SIGN}]?\s?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def extract_number(text: str, *, marker: str) -> Decimal | None:
    """Return the number that an answer gives.

    Args:
        text: The answer.
        marker: Text before the final number, e.g. ``####``; the first number behind its last
            occurrence is meant. Empty, or absent from the text: the last number.

    Returns:
        The number, thousands separators and dollar signs aside; None if there is none.
    """
    if marker and marker in text:
        behind = _NUMBER.findall(text.rpartition(marker)[2])
        if behind:
            return _parsed(behind[0])
    found = _NUMBER.findall(text)
    return _parsed(found[-1]) if found else None


def same_number(text: str, gold: str, *, marker: str) -> bool:
    """Tell whether an answer gives the gold number; ``18`` and ``18.00`` are the same.

    Args:
        text: The answer.
        gold: The gold answer, maybe with its derivation; read by the same rule.
        marker: See `extract_number`.

    Returns:
        True if both hold a number and the numbers are equal.
    """
    wanted = extract_number(gold, marker=marker)
    return wanted is not None and extract_number(text, marker=marker) == wanted


def _parsed(found: str) -> Decimal | None:
    digits = re.sub(r"[,$\s]", "", found).replace("\N{MINUS SIGN}", "-")
    try:
        return Decimal(digits)
    except InvalidOperation:
        return None
