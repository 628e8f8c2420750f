import math

import numpy as np
import pytest

from safemerge.errors import ConfigError
from safemerge.inference import (
    independent_discordance,
    mcnemar_p_value,
    mcnemar_power,
    paired_prompts,
    second_share,
    smallest_difference,
    unpaired_prompts,
)


def power_by_definition(n, toward, away, alpha):
    """Sum over every table of n pairs."""
    total = 0.0
    for left in range(n + 1):
        for right in range(n + 1 - left):
            if mcnemar_p_value(left, right) <= alpha:
                ways = math.comb(n, left) * math.comb(n - left, right)
                rest = n - left - right
                total += ways * toward**left * away**right * (1 - toward - away) ** rest
    return total


@pytest.mark.parametrize(
    ("n", "difference", "discordance", "alpha"),
    [(12, 0.2, 0.4, 0.05), (25, 0.1, 0.3, 0.05), (25, 0.0, 0.3, 0.1), (20, 0.3, 0.3, 0.05)],
)
def test_the_power_is_the_sum_over_every_table(n, difference, discordance, alpha):
    toward, away = (discordance + difference) / 2, (discordance - difference) / 2
    found = mcnemar_power(n, difference=difference, discordance=discordance, alpha=alpha)
    assert found == pytest.approx(power_by_definition(n, toward, away, alpha), abs=1e-7)


def test_the_exact_test_keeps_its_level():
    for n in (10, 60, 400):
        assert mcnemar_power(n, difference=0.0, discordance=0.2, alpha=0.05) <= 0.05


@pytest.mark.parametrize(("difference", "discordance"), [(0.03, 0.06), (0.1, 0.2), (0.2, 0.2)])
def test_the_prompts_planned_reach_the_power_and_one_step_fewer_does_not(difference, discordance):
    terms = {"difference": difference, "discordance": discordance, "alpha": 0.05}
    n = paired_prompts(**terms, power=0.8)
    assert mcnemar_power(n, **terms) >= 0.8
    assert mcnemar_power(n - 1, **terms) < 0.8


def test_a_simulation_finds_the_planned_difference_as_often_as_promised():
    n = paired_prompts(difference=0.08, discordance=0.16, alpha=0.05, power=0.8)
    generator = np.random.default_rng(5)
    tables = generator.multinomial(n, [0.12, 0.04, 0.84], size=3000)
    found = sum(mcnemar_p_value(int(left), int(right)) <= 0.05 for left, right, _ in tables)
    assert found / 3000 == pytest.approx(0.8, abs=0.025)


def test_two_independent_shares_need_the_textbooks_number():
    # (1.96 * sqrt(2 * 0.55 * 0.45) + 0.8416 * sqrt(0.6 * 0.4 + 0.25))^2 / 0.01 = 387.3
    assert unpaired_prompts(0.6, 0.5, alpha=0.05, power=0.8) == 388


def test_a_simulation_of_independent_shares_finds_the_difference_as_often_as_promised():
    n = unpaired_prompts(0.9, 0.8, alpha=0.05, power=0.8)
    generator = np.random.default_rng(6)
    one, other = (generator.binomial(n, share, 4000) / n for share in (0.9, 0.8))
    pooled = (one + other) / 2
    z = (one - other) / np.sqrt(2 * pooled * (1 - pooled) / n)
    assert (np.abs(z) > 1.959964).mean() == pytest.approx(0.8, abs=0.025)


def test_candidates_that_differ_rarely_need_fewer_prompts():
    needed = [
        paired_prompts(difference=0.03, discordance=psi, alpha=0.05, power=0.8)
        for psi in (0.03, 0.06, 0.12, independent_discordance(0.9, 0.87))
    ]
    assert needed == sorted(needed)
    assert needed[0] < needed[-1] / 4


def test_more_than_anybody_has_is_not_planned():
    assert paired_prompts(difference=0.0005, discordance=0.3, alpha=0.05, power=0.8) is None


@pytest.mark.parametrize("discordance", [0.1, None])
def test_the_smallest_difference_is_the_other_way_round(discordance):
    terms = {"alpha": 0.05, "power": 0.8}
    least = smallest_difference(400, 0.9, discordance=discordance, **terms)
    if discordance is None:
        needed = unpaired_prompts(0.9, 0.9 - least, **terms)
    else:
        needed = paired_prompts(difference=least, discordance=discordance, **terms)
    assert needed <= 400
    assert needed == pytest.approx(400, rel=0.05)


def test_few_prompts_show_nothing():
    assert smallest_difference(4, 0.9, discordance=0.5, alpha=0.05, power=0.8) is None


def test_the_second_share_lies_towards_one_half():
    assert second_share(0.9, 0.1) == pytest.approx(0.8)
    assert second_share(0.1, 0.1) == pytest.approx(0.2)
    assert second_share(0.5, 0.2) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: second_share(1.2, 0.1), r"share must be in \[0, 1\]; got 1\.2"),
        (lambda: second_share(0.5, 3), "got 3. It is a fraction: 0.03 is 3 points"),
        (lambda: unpaired_prompts(0.5, 0.5, alpha=0.05, power=0.8), "got 0.5 twice"),
        (lambda: unpaired_prompts(0.5, 0.4, alpha=0.0, power=0.8), r"alpha must be in \(0, 1\)"),
        (lambda: unpaired_prompts(0.5, 0.4, alpha=0.05, power=1.0), "got 1, alpha 0.05"),
        (
            lambda: paired_prompts(difference=0.2, discordance=0.1, alpha=0.05, power=0.8),
            "got discordance 0.1 and difference 0.2. Raise discordance",
        ),
        (
            lambda: paired_prompts(difference=0, discordance=0.1, alpha=0.05, power=0.8),
            "difference must be above 0; got 0",
        ),
        (
            lambda: mcnemar_power(10, difference=0, discordance=0, alpha=0.05),
            r"discordance must be in \(0, 1\]; got 0",
        ),
        (
            lambda: mcnemar_power(0, difference=0, discordance=0.1, alpha=0.05),
            "prompts must be at least 1; got 0",
        ),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
