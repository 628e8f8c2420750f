"""``safemerge plan``: how many prompts a question needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from safemerge.errors import ConfigError
from safemerge.inference import (
    MAX_PROMPTS,
    independent_discordance,
    mcnemar_power,
    paired_prompts,
    second_share,
    smallest_difference,
    unpaired_prompts,
    wilson_interval,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

GUESSES = (0.25, 0.5)
"""Discordances shown when none is given: this far from the least possible to independence."""


def run(options: argparse.Namespace) -> None:
    """Print how many prompts show a difference, or what a number of prompts can show."""
    if options.comparisons < 1:
        raise ConfigError(f"plan: comparisons must be at least 1; got {options.comparisons}.")
    alpha = options.alpha / options.comparisons
    lines = _needed(options, alpha) if options.prompts is None else _shown(options, alpha)
    print("\n".join(lines))


def _needed(options: argparse.Namespace, alpha: float) -> Iterator[str]:
    share, difference, power = options.share, options.difference, options.power
    other = second_share(share, difference)
    difference = abs(share - other)
    yield (
        f"How many prompts show a difference of {_points(difference)}: "
        f"a share of {share:g} against {other:g}?"
    )
    yield _terms(options, alpha)
    yield ""
    found = None
    for psi, what in _discordances(options, share, other):
        found = paired_prompts(difference=difference, discordance=psi, alpha=alpha, power=power)
        text = f"more than {MAX_PROMPTS}" if found is None else f"{found} prompts"
        if found is not None:
            reached = mcnemar_power(found, difference=difference, discordance=psi, alpha=alpha)
            text += f"  (power {reached:.3f})"
        yield f"  same prompts, answers differ on {psi:6.1%}{what}: {text}"
    apart = unpaired_prompts(share, other, alpha=alpha, power=power)
    yield f"  different prompts: {apart} prompts for each candidate"
    yield ""
    for n in sorted({found or apart, apart}):
        yield _precision(share, n)


def _shown(options: argparse.Namespace, alpha: float) -> Iterator[str]:
    share, n, power = options.share, options.prompts, options.power
    if n < 1:
        raise ConfigError(f"plan: prompts must be at least 1; got {n}.")
    yield f"What difference do {n} prompts show, at a share of {share:g}?"
    yield _terms(options, alpha)
    yield ""
    known = options.discordance
    for psi in [known] if known is not None else [0.05, 0.1, 0.2]:
        least = smallest_difference(n, share, discordance=psi, alpha=alpha, power=power)
        yield f"  same prompts, answers differ on {psi:6.1%}: {_least(least)}"
    least = smallest_difference(n, share, discordance=None, alpha=alpha, power=power)
    yield f"  different prompts, {n} for each candidate: {_least(least)}"
    yield ""
    yield _precision(share, n)


def _discordances(
    options: argparse.Namespace, share: float, other: float
) -> list[tuple[float, str]]:
    if options.discordance is not None:
        return [(options.discordance, "")]
    most = independent_discordance(share, other)
    least = abs(share - other)
    guessed = [(least + part * (most - least), " (a guess)") for part in GUESSES]
    return [*guessed, (most, " (independent answers)")]


def _terms(options: argparse.Namespace, alpha: float) -> str:
    terms = f"Two-sided test, alpha {options.alpha:g}, power {options.power:g}"
    if options.comparisons > 1:
        terms += f", for the first of {options.comparisons} comparisons under Holm ({alpha:.3g})"
    return terms + "."


def _precision(share: float, n: int) -> str:
    low, high = wilson_interval(share, n)
    return f"With {n} prompts a share of {share:g} has the 95 % interval [{low:.3f}, {high:.3f}]."


def _points(difference: float) -> str:
    count = f"{100 * difference:.4g}"
    return f"{count} point" if count == "1" else f"{count} points"


def _least(difference: float | None) -> str:
    if difference is None:
        return "none, whatever its size"
    # Rounded up: what is shown must be enough.
    return f"{_points(math.ceil(1000 * difference - 1e-6) / 1000)} or more"
