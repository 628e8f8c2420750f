import pytest

from safemerge.records import Response, Score
from safemerge.scoring.thinking import UNENDED, answers_alone, behind_thoughts, without_cut


@pytest.mark.parametrize(
    ("text", "opened", "answer"),
    [
        ("42", False, "42"),
        ("<think>6 times 7\nis</think>\n\n42", False, "42"),
        ("6 times 7 is</think>42", True, "42"),
        ("6 times 7 is</think>42", False, "42"),
        ("<think>a</think>4<think>b</think>2", False, "42"),
        ("a</think>4<think>b</think>2", True, "42"),
        ("<think>a</think>", False, ""),
        ("<think>6 times 7", False, None),
        ("6 times 7", True, None),
        ("42 <think>or", False, None),
        ("a</think>4<think>b", True, None),
    ],
)
def test_what_stands_behind_the_thoughts_is_the_answer(text, opened, answer):
    assert behind_thoughts(text, opened=opened) == answer


def response(name, text, *, finished):
    return Response(sample_id=name, text=text, num_tokens=3, finished=finished, candidate="c" * 16)


def test_thoughts_that_end_nowhere_are_an_empty_answer_or_none_to_score():
    given = [
        response("done", "<think>a</think> 42", finished=True),
        response("mute", "<think>a", finished=True),
        response("cut", "<think>a", finished=False),
    ]
    found, cut = answers_alone(given, opened=False)
    assert [(item.sample_id, item.text) for item in found] == [
        ("done", "42"),
        ("mute", ""),
        ("cut", ""),
    ]
    assert cut == {"cut"}
    scores = [Score(sample_id=item.sample_id, values={"accuracy": 0.0}) for item in given]
    assert [score.unscored for score in without_cut(scores, cut)] == [None, None, UNENDED]
