"""How a report says things: percentages, intervals, recipes and verdicts in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from safemerge.config.checkpoint import Setting
from safemerge.config.metric import Unit
from safemerge.config.variant import expert_settings
from safemerge.records import MetricEstimate
from safemerge.reports.comparison import PairedDifference

MINUS = "\u2212"
NO_VALUE = "not scored"

DIRECTION_WORDS = {"maximize": "higher is better", "minimize": "lower is better"}


def percent(value: float | None, *, unit: bool = True) -> str:
    """Return a share as text, e.g. ``83.2 %``.

    Args:
        value: The share as a fraction; None where nothing was scored.
        unit: Whether the sign is added; tables carry it in their heads.

    Returns:
        One decimal, a no-break space, a true minus sign.
    """
    if value is None:
        return NO_VALUE
    text = f"{100 * value:.1f}".replace("-", MINUS)
    return f"{0.0:.1f}{_sign(unit)}" if text == f"{MINUS}0.0" else f"{text}{_sign(unit)}"


def amount(value: float | None, unit: Unit, *, sign: bool = True) -> str:
    """Return a metric's value in its unit: ``83.2 %`` for a share, ``12.4`` for a number.

    Args:
        value: The value; a fraction for shares; None where nothing was scored.
        unit: Its metric's.
        sign: Whether a share gets its sign; tables carry it in their heads.

    Returns:
        A share as `percent` says it; a number at four significant digits.
    """
    if unit == "share" or value is None:
        return percent(value, unit=sign)
    return f"{value:.4g}".replace("-", MINUS)


def interval(estimate: MetricEstimate) -> str:
    """Return a 95 % interval in the metric's unit, e.g. ``[79.0, 86.8]``; empty without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = (amount(end, estimate.unit, sign=False) for end in (estimate.low, estimate.high))
    return f"[{low}, {high}]"


def estimate_text(estimate: MetricEstimate | None) -> str:
    """Return value, interval and n in one line, e.g. ``83.2 % [79.0, 86.8], n = 400``."""
    if estimate is None:
        return "not measured"
    unscored = f", {estimate.unscored} unscored" if estimate.unscored else ""
    if estimate.value is None:
        return f"{NO_VALUE} (n = {estimate.n}{unscored})"
    value = amount(estimate.value, estimate.unit)
    return f"{value} {interval(estimate)}, n = {estimate.n}{unscored}"


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points, signed, e.g. ``+3.1``."""
    if value is None:
        return NO_VALUE
    text = f"{100 * value:+.1f}".replace("-", MINUS)
    return "0.0" if text in (f"{MINUS}0.0", "+0.0") else text


def change(value: float | None, unit: Unit) -> str:
    """Return a difference in a metric's unit, signed: percentage points for shares."""
    if unit == "share" or value is None:
        return points(value)
    return "0" if value == 0 else f"{value:+.4g}".replace("-", MINUS)


def change_word(unit: Unit) -> str:
    """Return what follows a difference in text: ``" points"`` for shares."""
    return " points" if unit == "share" else ""


def difference_text(difference: PairedDifference) -> str:
    """Return a paired difference with its interval, e.g. ``+3.1 points [0.4, 5.9]``."""
    if difference.value is None:
        return "no sample in common with a verdict on both sides"
    value, low, high = (
        change(one, difference.unit) for one in (difference.value, difference.low, difference.high)
    )
    return f"{value}{change_word(difference.unit)} [{low}, {high}]"


def p_value_text(p_value: float | None) -> str:
    """Return a p-value to two digits, e.g. ``p = 0.034``."""
    if p_value is None:
        return "no p"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def coefficients(
    recipe: Mapping[str, Any], params: Mapping[str, Setting] = MappingProxyType({})
) -> list[tuple[str, str]]:
    """Flatten a recipe's method into (dotted name, value) pairs, the method's name first.

    Args:
        recipe: A resolved recipe.
        params: A trial's values by dotted path; of these the settings that experts were trained
            with are named too.

    Returns:
        E.g. ``[("method", "ties"), ("weights.math", "0.62"), ("lambda", "1")]``.
    """
    method = recipe.get("method", {})
    pairs = [("method", str(method.get("name", "unknown")))]
    for key, value in method.items():
        if key != "name":
            pairs += _flat(key, value)
    for expert, settings in expert_settings(params).items():
        for setting, value in settings.items():
            pairs += _flat(f"{expert} {setting}", value)
    return pairs


def recipe_text(
    recipe: Mapping[str, Any], params: Mapping[str, Setting] = MappingProxyType({})
) -> str:
    """Return a recipe's method, coefficients and experts' settings in one line."""
    (_, name), *rest = coefficients(recipe, params)
    parts = [f"{key.removeprefix('weights.')} {value}" for key, value in rest]
    return f"{name}: {', '.join(parts)}" if parts else name


def number(value: float) -> str:
    """Return a coefficient at three significant digits, with a true minus sign."""
    return f"{value:.3g}".replace("-", MINUS)


def seconds(value: float) -> str:
    """Return a duration for reading, e.g. ``0.62 s``, ``48 s``, ``12 min 30 s``, ``3 h 5 min``."""
    if value < 10:
        return f"{value:.2f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun, e.g. ``1 trial``, ``2 trials``."""
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def joined(words: list[str], *, last: str = "and") -> str:
    """Return words as a list in prose: ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {last} {words[-1]}"


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no markup, no table bars, no link, one line."""
    for character in "\\|<>*`":
        text = text.replace(character, f"\\{character}")
    # NOTE: intervals stay readable in raw text; only what would make a link is broken up.
    return text.replace("](", "]\\(").replace("\n", " ")


def _flat(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(f"{key}.{name}", item)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    else:
        yield key, number(float(value))


def _sign(unit: bool) -> str:
    return "\u00a0%" if unit else ""
