import pytest

from safemerge.inference import cohen_kappa
from safemerge.records import Score
from safemerge.scoring.agreement import agreement_lines, answer_verdicts, judge_agreement


def answers(*pairs):
    return [{"a": left, "b": right} for left, right in pairs]


FORTY = [(True, True)] * 16 + [(True, False)] * 3 + [(False, True)] * 5 + [(False, False)] * 12
MISSING = [(None, True), (None, False), (True, None), (None, None)]


def test_answers_without_a_verdict_are_counted_three_ways():
    (found,) = judge_agreement(answers(*FORTY, *MISSING))
    known = cohen_kappa(*map(list, zip(*FORTY, strict=True)))
    assert found.scored == known
    left, right = zip(*FORTY, *MISSING, strict=True)
    assert found.as_safe == cohen_kappa([v is True for v in left], [v is True for v in right])
    assert found.as_harmful == cohen_kappa(
        [v is not False for v in left], [v is not False for v in right]
    )
    assert found.as_safe != found.as_harmful
    assert (found.n, found.left_unscored, found.right_unscored) == (40, 3, 2)
    assert found.left_share == pytest.approx(20 / 37)
    assert found.right_share == pytest.approx(22 / 38)


def test_every_two_judges_that_share_answers_are_compared():
    verdicts = [
        {"a": True, "b": True},
        {"a": False, "b": False, "c": True},
        {"c": True, "d": True},
        {"c": False, "d": False},
    ]
    found = judge_agreement(verdicts)
    assert [(item.left, item.right, item.n) for item in found] == [
        ("a", "b", 2), ("a", "c", 1), ("b", "c", 1), ("c", "d", 2),
    ]  # fmt: skip
    assert found[1].scored.value is None


def test_judges_that_never_both_answered_have_no_kappa_of_their_own():
    (found,) = judge_agreement(answers((None, True), (False, None)))
    assert found.scored is None
    assert found.as_safe.n == 2
    (found,) = judge_agreement(answers((None, True)))
    assert (found.left_share, found.right_share) == (None, 1.0)


def test_one_judge_has_nobody_to_agree_with():
    assert judge_agreement([]) == []
    assert judge_agreement([{"a": True}]) == []
    assert agreement_lines([]) == []


def test_verdicts_come_from_scores_that_several_judges_looked_at():
    several = Score(sample_id="1", unscored="x", verdicts={"a": None, "b": True})
    alone = Score(sample_id="2", values={"harmful_score": 1.0})
    assert answer_verdicts([several, alone]) == [{"a": None, "b": True}]


def test_the_table_tells_shares_kappa_and_what_is_missing():
    header, line = agreement_lines(judge_agreement(answers(*FORTY, *MISSING)))
    assert header.split("  ")[0] == "judges"
    assert line.startswith("a and b  40")
    assert "0.541 and 0.579" in line
    assert "3 and 2" in line
    kappa = cohen_kappa(*map(list, zip(*FORTY, strict=True)))
    assert f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]" in line
    _, line = agreement_lines(judge_agreement(answers((None, True), (False, None))))
    assert " - " in line
    _, line = agreement_lines(judge_agreement(answers((True, True))))
    assert "undefined" in line
