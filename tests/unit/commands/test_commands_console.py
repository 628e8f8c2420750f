from types import SimpleNamespace

import pytest

from safemerge.api.progress import Pace, Progress, duration
from safemerge.commands import console as module
from safemerge.commands.console import Console, estimate_text, result_lines
from safemerge.records import CandidateResult, MetricEstimate


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    state = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: state.now)
    return state


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "[ 0:00]"), (9.9, "[ 0:09]"), (75, "[ 1:15]"), (3600, "[60:00]"), (7325, "[122:05]")],
)
def test_lines_stand_behind_the_time_since_the_beginning(clock, capsys, seconds, text):
    console = Console()
    clock.now += seconds
    console.say("merging")
    assert capsys.readouterr().out == f"{text} merging\n"


def test_an_empty_line_has_no_time_and_plain_text_neither(clock, capsys):
    console = Console()
    console.say("")
    console.plain("as it is")
    console.plain()
    assert capsys.readouterr().out == "\nas it is\n\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (125, "2 min 5 s"),
        (7200, "120 min 0 s"),
    ],
)
def test_a_duration_is_told_in_minutes_and_seconds(seconds, words):
    assert duration(seconds) == words


def steps(console, clock, capsys, numbers, *, seconds, total=20):
    said = []
    for number in numbers:
        console.training_step("math", SimpleNamespace(step=number, loss=1.23456), total)
        said += capsys.readouterr().out.splitlines()
        clock.now += seconds
    return said


def test_progress_is_told_about_every_ten_seconds_and_at_the_end(clock, capsys):
    said = steps(Console(), clock, capsys, range(1, 21), seconds=2)
    assert said == [
        "[ 0:00] math: step 1/20, loss 1.235",
        "[ 0:10] math: step 6/20, loss 1.235, about 28 s left",
        "[ 0:20] math: step 11/20, loss 1.235, about 18 s left",
        "[ 0:30] math: step 16/20, loss 1.235, about 8 s left",
        "[ 0:38] math: step 20/20, loss 1.235",
    ]


def test_steps_of_an_earlier_run_do_not_make_the_time_left_look_short(clock, capsys):
    said = steps(Console(), clock, capsys, range(91, 101), seconds=5, total=100)
    assert said == [
        "[ 0:00] math: step 91/100, loss 1.235",
        "[ 0:10] math: step 93/100, loss 1.235, about 35 s left",
        "[ 0:20] math: step 95/100, loss 1.235, about 25 s left",
        "[ 0:30] math: step 97/100, loss 1.235, about 15 s left",
        "[ 0:40] math: step 99/100, loss 1.235, about 5 s left",
        "[ 0:45] math: step 100/100, loss 1.235",
    ]


def test_stages_side_by_side_are_told_apart(clock, capsys):
    console = Console()
    first = steps(console, clock, capsys, [1], seconds=0)
    console.training_step("code", SimpleNamespace(step=1, loss=0.5), 7)
    assert first + capsys.readouterr().out.splitlines() == [
        "[ 0:00] math: step 1/20, loss 1.235",
        "[ 0:00] code: step 1/7, loss 0.500",
    ]


def estimate(value=0.8125, **fields):
    interval = {"low": None, "high": None} if value is None else {"low": 0.7, "high": 0.9}
    given = {"metric": "m", "value": value, **interval, "n": 80, "direction": "maximize"}
    return MetricEstimate(**{**given, **fields})


def test_an_estimate_has_its_interval_and_sample_size():
    assert estimate_text(estimate()) == "0.812 [0.700, 0.900] (n=80)"
    assert estimate_text(estimate(unscored=3)) == "0.812 [0.700, 0.900] (n=80, 3 unscored)"


def test_what_was_not_measured_is_not_shown_as_zero():
    assert estimate_text(None) == estimate_text(estimate(None, n=0, unscored=4)) == "unscored"
    assert estimate_text(estimate(0.0)).startswith("0.000 [")


def test_a_result_is_a_line_a_metric_and_its_defect():
    result = CandidateResult(
        candidate="c", split="search", metrics={"skill": estimate(), "harm.rate": estimate(None)}
    )
    assert result_lines(result) == [
        "skill      0.812 [0.700, 0.900] (n=80)",
        "harm.rate  unscored",
    ]
    broken = CandidateResult(candidate="c", split="search", metrics={}, broken="not finite")
    assert result_lines(broken) == ["broken: not finite"]


def test_the_time_left_goes_by_the_time_that_is_not_paused(clock):
    pace = Pace(10, done=2)
    with pace.paused():
        clock.now += 500  # an engine starts
    clock.now += 30
    assert pace.step() == ("[3/10]", ", about 3 min 30 s left")


def test_lines_of_a_block_go_to_a_second_place_too():
    first, second = [], []
    progress = Progress(first.append)
    said = progress.say
    with progress.also(second.append):
        said("inside")
    said("outside")
    assert (first, second) == (["inside", "outside"], ["inside"])
