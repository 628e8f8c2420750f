import math

import pytest

from safemerge.errors import ScoringError
from safemerge.inference import compare_repeated, spread


def test_three_seeds_have_students_interval_with_two_degrees():
    found = spread([0.2, 0.3, 0.7])
    assert found.mean == pytest.approx(0.4)
    assert found.sd == pytest.approx(math.sqrt((0.04 + 0.01 + 0.09) / 2))
    # 4.30265: Student's 0.975 quantile at two degrees of freedom, from tables.
    half = 4.30265 * found.sd / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((0.4 - half, 0.4 + half), abs=1e-5)


def test_one_seed_has_no_spread():
    assert spread([0.5]) == (0.5, None, None, None, 1)


def test_no_seed_is_refused():
    with pytest.raises(ScoringError, match="at least one repetition"):
        spread([])


def answers(*verdicts):
    return {f"q{index}": float(value) for index, value in enumerate(verdicts)}


def test_prompts_count_once_however_many_seeds_answer_them():
    left = [answers(1, 1, 1, 1, 1, 1, 0, 0), answers(1, 1, 1, 1, 1, 1, 0, 1)]
    right = [answers(0, 0, 0, 0, 0, 0, 0, 0), answers(0, 0, 0, 0, 0, 0, 1, 1)]
    found = compare_repeated(left, right)
    assert (found.left_only, found.right_only, found.num_samples) == (6, 1, 8)
    # Six prompts of 2 and one of 1 against: only all six alike reach 11, whatever the seventh is.
    assert found.flips.p_value() == pytest.approx((4 / 2**7, 4 / 2**7))
    assert found.difference.mean == pytest.approx((6 / 8 + 5 / 8) / 2)


def test_a_prompt_that_one_seed_did_not_score_is_left_out():
    found = compare_repeated([answers(1, 1), {"q0": 1.0}], [answers(0, 0), answers(0, 0)])
    assert found.num_samples == 1
    assert found.difference.mean == 1.0


def test_samples_of_one_group_are_one_draw():
    left, right = [answers(*[1] * 8)], [answers(*[0] * 8)]
    groups = {f"q{index}": "g" for index in range(6)}
    found = compare_repeated(left, right, groups=groups)
    assert (found.left_only, found.num_samples, found.num_groups) == (3, 8, 3)
    # 6, 1 and 1 in all: only all plus and all minus lie as far out.
    assert found.flips.p_value() == pytest.approx((2 / 2**3, 2 / 2**3))
    assert found.difference.mean == 1.0
    alone = compare_repeated(left, right, groups={"q0": "q1"})
    assert (alone.left_only, alone.num_groups) == (8, 8)


def test_equal_answers_show_no_difference():
    found = compare_repeated([answers(1, 0)], [answers(1, 0)])
    assert (found.difference.mean, *found.flips.p_value()) == (0.0, 1.0, 1.0)
    assert found.p_seeds is None, "one repetition"


def test_the_test_over_seeds_is_students():
    left, right = [answers(1, 1, 1, 1)] * 3, [answers(0, 0, 1, 1), answers(0, 1, 1, 1)]
    found = compare_repeated(left, [*right, answers(0, 0, 0, 1)])
    # Differences 2/4, 1/4, 3/4; with two degrees of freedom p is 1 - t / sqrt(2 + t^2).
    statistic = 0.5 / (0.25 / math.sqrt(3))
    expected = 1 - statistic / math.sqrt(2 + statistic**2)
    assert found.p_seeds == pytest.approx(expected)
    assert compare_repeated(left, [right[0]] * 3).p_seeds == 0.0
    assert compare_repeated(left, left).p_seeds == 1.0


@pytest.mark.parametrize(
    ("left", "right"), [([], []), ([answers(1)], []), ([answers(1)], [{"other": 1.0}])]
)
def test_nothing_in_common_is_refused(left, right):
    with pytest.raises(ScoringError, match="repeated comparison"):
        compare_repeated(left, right)
