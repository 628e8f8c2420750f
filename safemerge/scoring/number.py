r"""Numbers in answers: which one is meant, and whether two are the same.

Read are thousands separators (``9,500``, ``12,34,567``, ``9{,}500``, ``9\,500``, thin spaces,
apostrophes; ``1.234,56``, ``0,5`` and ``1 000`` where they can mean nothing else), fractions
(``1/2``, ``1 1/2``, ``\frac{1}{2}``, ``½``), powers (``1e5``, ``10^5``, ``2^{10}``,
``1.5 \times 10^3``), currencies, percent signs (``12%`` is 12), LaTeX and Markdown around a
number, and the digits of every script. Not read: number words, and words that scale a number
(``5 million`` is 5).

References:
    Cobbe et al., GSM8K, arXiv:2110.14168: the gold answer stands behind ``####``. The last
    number of an answer without a marker is the fallback of Huang et al., Booster,
    arXiv:2409.01586, evaluation. Hendrycks et al., MATH, arXiv:2103.03874: the final answer is
    boxed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext

_THIN = "\N{THIN SPACE}"
"""What every space that groups digits becomes."""

_DIGITS = Context(prec=60, traps=[InvalidOperation, DivisionByZero, Overflow])

_LARGEST_EXPONENT = 999
_SIGN_REACH = 80
"""Characters before a number in which its sign is looked for."""

_DECIMAL_COMMA = r"(?:0,\d++ | \d{4,}+,\d++ | \d++,(?!\d{3}(?!\d))\d++)"

_UNSIGNED = rf"""
    (?: [1-9]\d{{0,2}} (?:,\d{{3}})+ (?![,\d]) (?:\.\d++)?             # 1,234,567.8
      | [1-9]\d? (?:,\d{{2}})+ ,\d{{3}} (?![,\d]) (?:\.\d++)?          # 12,34,567
      | [1-9]\d{{0,2}} (?:[{_THIN}'_]\d{{3}})+ (?!\d) (?:[.,]\d+)?    # 1'234'567
      | [1-9]\d{{0,2}} (?=(?:[ ]\d{{3}})*[ ]0) (?:[ ]\d{{3}})+ (?!\d) (?:[.,]\d++)?  # 1 000 000
      | [1-9]\d{{0,2}} (?: (?:\.\d{{3}})+ ,\d+ | (?:\.\d{{3}}){{2,}} ) (?![.,]?\d)  # 1.234,56
      | (?<!\d,) (?<![(\[{{]) {_DECIMAL_COMMA} (?![.,]?\d)                 # 12,5
      | (?<!\d,) {_DECIMAL_COMMA} (?![.,]?\d) (?![)\]}}])
      | \d++ (?:\.\d++)?
      | (?<!\.) \.\d++ )
    (?: [eE][-+]?\d{{1,3}} (?![\w.]) )?
"""

_NUMBER = re.compile(
    rf"""
    (?<! [A-Za-z\u00c0-\u024f\u0370-\u04ff\d_^] ) (?<! \d[.] ) (?<! \^[-+] )
    (?: (?P<whole>\d++) [ {_THIN}]++ (?P<top>\d++) \s?/\s? (?P<bottom>\d++) (?!/)
      | (?<! \d/ ) (?P<left>{_UNSIGNED}) \s?/\s? (?P<right>{_UNSIGNED}) (?! \s?/\s?\d )
      | (?P<mantissa>{_UNSIGNED}) \s?[*x]\s? 10\s?\^(?P<scale>[-+]?\d++)
      | [(] (?P<signed>[-+]?(?:{_UNSIGNED})) [)] \^(?P<raised>[-+]?\d++)
      | (?P<base>{_UNSIGNED}) \s?\^(?P<power>[-+]?\d++)
      | (?P<plain>{_UNSIGNED}) )
    """,
    re.VERBOSE,
)

_SIGN_BEFORE = re.compile(r"(?P<sign>[-+])(?P<gap> *)(?:\$ *)?\Z")
_SIGN_WITHIN = re.compile(r"\$ *(?P<sign>[-+])\Z")
_ENUMERATOR = re.compile(r"(?m)^[ \t]*(\d{1,2})[.)][ \t]+(?=\S)")

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\N{MINUS SIGN}\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{EN DASH}", "-"),
        **dict.fromkeys("\N{SMALL HYPHEN-MINUS}\N{FULLWIDTH HYPHEN-MINUS}", "-"),
        **dict.fromkeys("€£¥₹₽₩₺₫₴", "$"),
        **dict.fromkeys("\N{MULTIPLICATION SIGN}\N{MULTIPLICATION X}\N{ASTERISK OPERATOR}", "*"),
        **dict.fromkeys("\N{MIDDLE DOT}\N{DOT OPERATOR}", "*"),
        **dict.fromkeys("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{FIGURE SPACE}", _THIN),
        "\N{RIGHT SINGLE QUOTATION MARK}": "'",
        "\N{ARABIC DECIMAL SEPARATOR}": ".",
        "\N{ARABIC THOUSANDS SEPARATOR}": ",",
    }
)
_CODES = "USD|EUR|GBP|JPY|CNY|INR|CHF|CAD|AUD|RUB|BRL|Rs[.]?"

_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\[dtc]?frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\[dtc]?frac\s*(\d)\s*\{", r"\\frac{\1}{"),
        (r"\{,\}", ","),
        (r"(?<=\d)(?:\\[,!;: ]|~)(?=\d{3})", _THIN),
        (r"\\[,!;: ]|~|\\(?:left|right|displaystyle|quad)\b", " "),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|fbox|boxed)\s*\{", " "),
        (r"\\([$%#&])", r"\1"),
        (r"\\(?:times|cdot)(?![A-Za-z])", "*"),
        (r"(?<=\d)\*\*(?=[-+]?\d)", "^"),
        (r"\*\*|`|(?<![A-Za-z\d])_+(?=\S)", ""),
        (r"\^\s*[{(]\s*([-+]?\d+)\s*[})]", r"^\1"),
        (r"\^\s+(?=[-+]?\d)", "^"),
        (r"[_^]\s*\{[^{}]*\}", " "),
        (r"\\[dtc]?frac\s*\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r" \1/\2"),
        (r"(?<=[-+$]) (?=\d+/)", ""),
        (rf"(?:US|A|C|HK|NZ|S)?\$|\b(?:{_CODES})(?=\s?[-+]?[\d.])", "$"),
    )
)
"""How LaTeX, Markdown and currencies are brought to one spelling, in this order."""


def extract_number(text: str, *, marker: str) -> Decimal | None:
    r"""Return the number that an answer gives.

    A dash is a sign where it touches the number and nothing stands before it, or where it
    follows ``=``, ``(``, ``:`` or the marker; at the beginning of a line ``- 18`` is an item of
    a list, and in ``20 - 2`` the dash is an operator.

    Args:
        text: The answer.
        marker: Text before the final number, e.g. ``####``; the first number behind its last
            occurrence is meant. Empty, or absent from the text: the last number in the last
            ``\boxed{}``, else the last number.

    Returns:
        The number; None if there is none.
    """
    if marker and marker in text:
        behind = next(_numbers(text.rpartition(marker)[2], follows=True), None)
        if behind is not None:
            return behind
    boxed = _boxed(text)
    for part in (boxed, text):
        found = list(_numbers(part, follows=part is boxed))
        if found:
            return found[-1]
    return None


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


def _numbers(text: str, *, follows: bool) -> Iterator[Decimal]:
    """Numbers in order; `follows`: what stands before the text announces a number."""
    plain = _without_enumerators(_in_one_spelling(text))
    for match in _NUMBER.finditer(plain):
        try:
            with localcontext(_DIGITS):
                value = _value(match)
        except (InvalidOperation, DivisionByZero, Overflow):
            continue
        yield -value if _is_negative(plain[: match.start()], follows=follows) else value


def _in_one_spelling(text: str) -> str:
    # NOTE: before NFKC, which would make 1½ eleven halves and 10² a hundred and two.
    text = re.sub(r"(?=[¼-¾⅐-⅞↉])", " ", text)
    text = re.sub(r"[⁺⁻]?[⁰¹²³⁴-⁹]+", lambda match: f"^{match[0].translate(_SUPERSCRIPTS)}", text)
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS).replace(_THIN, "\0"))
    text = text.replace("\0", _THIN).replace("\N{FRACTION SLASH}", "/")
    text = "".join(
        char if char.isascii() or not char.isdecimal() else str(unicodedata.digit(char))
        for char in text
    )
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text


def _without_enumerators(text: str) -> str:
    """Blank the ``1.``, ``2.``, … that head a list's items."""
    expected = 1

    def blanked(match: re.Match[str]) -> str:
        nonlocal expected
        if int(match[1]) != expected:
            return match[0]
        expected += 1
        return " "

    # A line of a list needs another: a lone "1. " may be the end of a sentence.
    heads = [int(number) for number in _ENUMERATOR.findall(text)]
    return _ENUMERATOR.sub(blanked, text) if 2 in heads else text


def _is_negative(before: str, *, follows: bool) -> bool:
    before = before[-_SIGN_REACH:]
    if (within := _SIGN_WITHIN.search(before)) is not None:
        return within["sign"] == "-"
    match = _SIGN_BEFORE.search(before)
    if match is None or match["sign"] == "+":
        return False
    line = before[: match.start()].rpartition("\n")[2]
    if not match["gap"]:
        return not line or not (line[-1].isalnum() or line[-1] in ")]}%.")
    if line.strip():
        return line.rstrip()[-1] in "=(:[{≈,"
    return follows and "\n" not in before[: match.start()] and len(before) < _SIGN_REACH


def _value(match: re.Match[str]) -> Decimal:
    found = match.groupdict()
    if found["top"] is not None:
        part = Decimal(found["top"]) / Decimal(found["bottom"])
        return Decimal(found["whole"]) + part if part < 1 else part
    if found["left"] is not None:
        return _plain(found["left"]) / _plain(found["right"])
    if found["mantissa"] is not None:
        return _plain(found["mantissa"]) * Decimal(10) ** _exponent(found["scale"])
    if found["signed"] is not None:
        return _plain(found["signed"]) ** _exponent(found["raised"])
    if found["base"] is not None:
        return _plain(found["base"]) ** _exponent(found["power"])
    return _plain(found["plain"])


def _exponent(text: str) -> int:
    value = Decimal(text)
    if abs(value) > _LARGEST_EXPONENT:
        raise Overflow
    return int(value)


def _plain(text: str) -> Decimal:
    digits = re.sub(rf"[{_THIN}'_ ]", "", text)
    decimal_comma = re.fullmatch(r"[-+]?(?:[\d.]+,\d+|\d+,\d+)(?:[eE].*)?", digits)
    is_thousands = re.fullmatch(
        r"[-+]?[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}(?:\.\d+)?(?:[eE].*)?", digits
    )
    if digits.count(".") > 1 or (decimal_comma and not is_thousands):
        digits = digits.replace(".", "").replace(",", ".")
    return Decimal(digits.replace(",", ""))


def _boxed(text: str) -> str:
    r"""Content of the last ``\boxed{}``; empty if there is none."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return ""
    start += len(r"\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]
