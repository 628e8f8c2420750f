import re

import pytest

from safemerge.cli import main
from safemerge.inference import paired_prompts, unpaired_prompts


def said(capsys, *arguments):
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_how_many_prompts_show_a_three_point_difference(capsys):
    text = said(capsys, "--share", "0.9", "--difference", "0.03", "--discordance", "0.1")
    assert "difference of 3 points: a share of 0.9 against 0.87?" in text
    needed = paired_prompts(difference=0.03, discordance=0.1, alpha=0.05, power=0.8)
    assert f"answers differ on  10.0%: {needed} prompts" in text
    apart = unpaired_prompts(0.9, 0.87, alpha=0.05, power=0.8)
    assert f"different prompts: {apart} prompts for each candidate" in text
    assert f"With {needed} prompts a share of 0.9 has the 95 % interval [0." in text


def test_without_a_discordance_guesses_up_to_independence_are_shown(capsys):
    text = said(capsys)
    counts = [int(found) for found in re.findall(r"%.*?: (\d+) prompts", text)]
    assert len(counts) == 3
    assert counts == sorted(counts)
    assert "(independent answers)" in text
    assert text.count("(a guess)") == 2


def test_many_comparisons_need_more_prompts(capsys):
    one = said(capsys, "--discordance", "0.1")
    six = said(capsys, "--discordance", "0.1", "--comparisons", "6")
    assert "for the first of 6 comparisons under Holm (0.00833)" in six
    counts = [int(re.search(r"10\.0%: (\d+)", text).group(1)) for text in (one, six)]
    assert counts[1] > 1.4 * counts[0]


def test_what_a_number_of_prompts_can_show(capsys):
    text = said(capsys, "--prompts", "200", "--discordance", "0.1")
    points = float(re.search(r"10\.0%: ([\d.]+) points or more", text).group(1))
    needed = paired_prompts(difference=points / 100, discordance=0.1, alpha=0.05, power=0.8)
    assert 180 <= needed <= 200
    assert "With 200 prompts a share of 0.9 has the 95 % interval [0.851, 0.934]." in text


def test_too_few_prompts_are_told_so(capsys):
    assert "none, whatever its size" in said(capsys, "--prompts", "3", "--share", "0.5")


def test_more_prompts_than_anybody_has_are_not_counted(capsys):
    text = said(capsys, "--difference", "0.0005", "--discordance", "0.3")
    assert "answers differ on  30.0%: more than 200000" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--share", "1.5"], "plan: share must be in [0, 1]; got 1.5."),
        (["--difference", "3"], "got 3. It is a fraction"),
        (["--comparisons", "0"], "plan: comparisons must be at least 1; got 0."),
        (["--prompts", "0"], "plan: prompts must be at least 1; got 0."),
        (["--difference", "0.2", "--discordance", "0.1"], "Raise discordance."),
        (["--alpha", "2"], "plan: alpha must be in (0, 1); got 2."),
    ],
)
def test_a_senseless_plan_ends_with_2_and_one_line(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
