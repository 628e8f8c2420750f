import math

import numpy as np
import pytest

from safemerge.errors import ScoringError
from safemerge.inference import cohen_kappa


def verdicts(both, left_only, right_only, neither):
    left = [True] * (both + left_only) + [False] * (right_only + neither)
    right = [True] * both + [False] * left_only + [True] * right_only + [False] * neither
    return left, right


def test_kappa_of_a_known_table():
    # Observed agreement 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    found = cohen_kappa(*verdicts(20, 5, 10, 15))
    assert found.value == pytest.approx(0.4)
    assert (found.agreement, found.n) == (pytest.approx(0.7), 50)


def test_the_interval_is_the_spread_over_samples():
    left, right = (np.array(side) for side in verdicts(200, 50, 100, 150))
    found = cohen_kappa(left.tolist(), right.tolist())
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(1500):
        picked = generator.integers(0, 500, 500)
        observed = (left[picked] == right[picked]).mean()
        one, other = left[picked].mean(), right[picked].mean()
        expected = one * other + (1 - one) * (1 - other)
        drawn.append((observed - expected) / (1 - expected))
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * np.std(drawn), rel=0.08)


def test_agreement_by_chance_is_zero_and_full_disagreement_is_negative():
    assert cohen_kappa(*verdicts(25, 25, 25, 25)).value == pytest.approx(0.0)
    assert cohen_kappa(*verdicts(0, 20, 20, 0)).value == pytest.approx(-1.0)


def test_full_agreement_is_one_and_not_certain():
    found = cohen_kappa(*verdicts(10, 0, 0, 10))
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.5 < found.low < 0.9


@pytest.mark.parametrize(
    ("counts", "agreement"),
    [((9, 0, 0, 0), 1.0), ((0, 0, 0, 9), 1.0), ((6, 0, 2, 0), 0.75), ((0, 1, 0, 3), 0.75)],
)
def test_a_rater_with_one_verdict_only_leaves_kappa_undefined(counts, agreement):
    found = cohen_kappa(*verdicts(*counts))
    assert (found.value, found.low, found.high, found.agreement) == (None, None, None, agreement)


@pytest.mark.parametrize("right", [[], [True, False]])
def test_other_items_are_refused(right):
    with pytest.raises(ScoringError, match=rf"got 1 and {len(right)}"):
        cohen_kappa([True], right)


def test_order_of_the_raters_does_not_matter():
    left, right = verdicts(7, 3, 1, 12)
    assert math.isclose(cohen_kappa(left, right).low, cohen_kappa(right, left).low)
