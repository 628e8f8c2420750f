"""How many prompts a comparison needs, and what a number of prompts can show.

References:
    McNemar's test, exact: its power is summed over the binomial number of discordant pairs.
    Two independent shares: Fleiss, Levin and Paik, *Statistical Methods for Rates and
    Proportions*, 3rd ed. 2003, equation 4.14 (no continuity correction). Connor, Sample size
    for testing differences in proportions for the paired-sample design, Biometrics 43 (1987),
    as the first guess of the exact search.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from safemerge.errors import ConfigError

MAX_PROMPTS = 200_000
"""No plan asks for more: beyond, the difference is too small to matter."""

_TAIL = 1e-9
"""Probability of discordant counts that is left out of a sum."""

_Array = npt.NDArray[np.float64]


def second_share(share: float, difference: float) -> float:
    """Return the share that lies `difference` from `share`, on the side of one half.

    That side has the larger variance, so a plan for it holds for the other one too.

    Args:
        share: In [0, 1].
        difference: In (0, 1).

    Returns:
        The other share.

    Raises:
        ConfigError: If an argument is out of range.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"plan: share must be in [0, 1]; got {share:g}.")
    if not 0.0 < difference < 1.0:
        raise ConfigError(
            f"plan: difference must be in (0, 1); got {difference:g}. "
            "It is a fraction: 0.03 is 3 points."
        )
    other = share - difference if share >= 0.5 else share + difference
    return min(1.0, max(0.0, other))


def independent_discordance(share: float, other: float) -> float:
    """Return how often two candidates differ if they answer independently: an upper guess."""
    return share * (1 - other) + other * (1 - share)


def unpaired_prompts(share: float, other: float, *, alpha: float, power: float) -> int:
    """Return how many prompts each of two candidates needs, on different prompts.

    Args:
        share: Expected share of one candidate, in [0, 1].
        other: Expected share of the other; must differ.
        alpha: Two-sided error rate, in (0, 1).
        power: Chance of seeing the difference, in (alpha, 1).

    Returns:
        Prompts for each candidate.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check(alpha, power)
    difference = abs(share - other)
    if difference == 0:
        raise ConfigError(f"plan: shares must differ; got {share:g} twice.")
    pooled = (share + other) / 2
    normal = NormalDist()
    at_null = normal.inv_cdf(1 - alpha / 2) * math.sqrt(2 * pooled * (1 - pooled))
    at_truth = normal.inv_cdf(power) * math.sqrt(share * (1 - share) + other * (1 - other))
    return max(1, math.ceil(((at_null + at_truth) / difference) ** 2))


def mcnemar_power(n: int, *, difference: float, discordance: float, alpha: float) -> float:
    """Return the power of the exact two-sided McNemar test.

    Args:
        n: Prompts that both candidates answer, at least 1.
        difference: Expected difference of their shares, in [0, discordance].
        discordance: Share of prompts on which they differ, in (0, 1].
        alpha: Two-sided error rate, in (0, 1).

    Returns:
        Chance of a p-value at or below alpha, either way.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check_discordance(difference, discordance)
    if n < 1:
        raise ConfigError(f"plan: prompts must be at least 1; got {n}.")
    # For a number of discordant pairs drawn: reject if the rarer side counts at most so many.
    first, chances = _binomial(n, discordance)
    toward = min(1.0, (1 + difference / discordance) / 2)
    total = 0.0
    for discordant, chance in enumerate(chances, start=first):
        most = _critical_count(discordant, alpha)
        if most >= 0:
            low = _lower_tail(discordant, 1 - toward, most)
            total += chance * (low + _lower_tail(discordant, toward, most))
    return min(1.0, total)


def paired_prompts(
    *, difference: float, discordance: float, alpha: float, power: float
) -> int | None:
    """Return how many prompts a paired comparison needs for the exact McNemar test.

    The smallest number at which the exact power reaches the one asked, up to the test's
    steps: it is found by bisection, and the power of a discrete test is not quite monotone.

    Args:
        difference: Expected difference of the shares, in (0, discordance].
        discordance: Share of prompts on which the candidates differ, in (0, 1].
        alpha: Two-sided error rate, in (0, 1).
        power: Chance of seeing the difference, in (alpha, 1).

    Returns:
        Prompts that both answer; None if `MAX_PROMPTS` are too few.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check(alpha, power)
    _check_discordance(difference, discordance)
    if difference <= 0:
        raise ConfigError(f"plan: difference must be above 0; got {difference:g}.")
    normal = NormalDist()
    guess = (
        normal.inv_cdf(1 - alpha / 2) * math.sqrt(discordance)
        + normal.inv_cdf(power) * math.sqrt(max(0.0, discordance - difference**2))
    ) ** 2 / difference**2
    if guess > MAX_PROMPTS:
        return None

    def enough(n: int) -> bool:
        found = mcnemar_power(n, difference=difference, discordance=discordance, alpha=alpha)
        return found >= power

    low, high = max(1, math.floor(guess * 0.8)), max(2, math.ceil(guess * 1.2) + 10)
    while not enough(high):
        low, high = high, high * 2
    while low > 1 and enough(low):
        low //= 2
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return low if low == 1 and enough(1) else high


def smallest_difference(
    n: int, share: float, *, discordance: float | None, alpha: float, power: float
) -> float | None:
    """Return the smallest difference that a number of prompts can show.

    Args:
        n: Prompts, at least 1.
        share: Share of one candidate, in [0, 1].
        discordance: Share of prompts on which the candidates differ, for a paired comparison;
            None for different prompts.
        alpha: Two-sided error rate, in (0, 1).
        power: Chance of seeing it, in (alpha, 1).

    Returns:
        Difference of the shares, to 0.0005; None if no difference can be shown.

    Raises:
        ConfigError: If an argument is out of range.
    """
    _check(alpha, power)
    largest = max(share, 1 - share)

    def shown(difference: float) -> bool:
        if discordance is None:
            other = second_share(share, difference)
            return unpaired_prompts(share, other, alpha=alpha, power=power) <= n
        return (
            mcnemar_power(n, difference=difference, discordance=discordance, alpha=alpha) >= power
        )

    if discordance is not None:
        largest = min(largest, discordance)
    low, high = 0.0, min(largest, 1 - 1e-9)
    if not shown(high):
        return None
    while high - low > 5e-4:
        middle = (low + high) / 2
        if shown(middle):
            high = middle
        else:
            low = middle
    return high


def _check(alpha: float, power: float) -> None:
    if not 0.0 < alpha < 1.0:
        raise ConfigError(f"plan: alpha must be in (0, 1); got {alpha:g}.")
    if not alpha < power < 1.0:
        raise ConfigError(f"plan: power must be in (alpha, 1); got {power:g}, alpha {alpha:g}.")


def _check_discordance(difference: float, discordance: float) -> None:
    if not 0.0 < discordance <= 1.0:
        raise ConfigError(f"plan: discordance must be in (0, 1]; got {discordance:g}.")
    if difference > discordance + 1e-12:
        raise ConfigError(
            "plan: two candidates must differ on at least as many prompts as their shares do; "
            f"got discordance {discordance:g} and difference {difference:g}. Raise discordance."
        )


@functools.lru_cache(maxsize=32)
def _log_factorials(bits: int) -> _Array:
    """Logarithms of the factorials of 0 to 2**bits."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, 2**bits + 1, dtype=np.float64)))])


def _binomial(n: int, probability: float) -> tuple[int, _Array]:
    """Probabilities of a binomial around its mean, and the count of the first of them."""
    if probability >= 1.0:
        return n, np.ones(1)
    spread = math.sqrt(n * probability * (1 - probability))
    half = 7 * spread + 20
    first = max(0, math.floor(n * probability - half))
    last = min(n, math.ceil(n * probability + half))
    counts = np.arange(first, last + 1)
    logs = _log_factorials(n.bit_length())
    chances = np.exp(
        logs[n]
        - logs[counts]
        - logs[n - counts]
        + counts * math.log(probability)
        + (n - counts) * math.log1p(-probability)
    )
    kept = np.flatnonzero(chances > _TAIL / len(chances))
    return first + int(kept[0]), chances[kept[0] : kept[-1] + 1]


def _critical_count(discordant: int, alpha: float) -> int:
    """Largest count of the rarer side at which the sign test rejects; -1 if none does."""
    if discordant == 0:
        return -1
    first, chances = _binomial(discordant, 0.5)
    inside = np.flatnonzero(2 * np.cumsum(chances) <= alpha)
    if len(inside) == 0:
        return first - 1 if first > 0 else -1
    return min(first + int(inside[-1]), (discordant - 1) // 2)


def _lower_tail(n: int, probability: float, most: int) -> float:
    if probability <= 0.0:
        return 1.0
    if probability >= 1.0:
        return 0.0
    first, chances = _binomial(n, probability)
    return float(chances[: max(0, most - first + 1)].sum())
