"""The live view's lines, and the server of one page."""

import io
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler

import pytest

from safemerge.api.page_server import served_page
from safemerge.api.progress import Pace
from safemerge.api.state import SearchState, Tally
from safemerge.commands.live import LiveView, can_show, view_lines
from safemerge.errors import UserError
from safemerge.front import front_trials
from safemerge.records import CandidateResult, MetricEstimate, Timings, TrialRecord
from safemerge.testing.landscapes import landscape_study

STATE = SearchState(
    study="toy", done=12, total=40, seconds_each=30.0, failed=1, infeasible=2, replicas=2,
    most_replicas=4, prompts_per_s=12.34, metrics=("skill", "unsafe.harmful_score"),
    best=tuple((f"trial {k}", (0.9 - 0.1 * k, 0.8 - 0.1 * k)) for k in range(8)),
)  # fmt: skip


def test_the_view_says_progress_time_pace_replicas_and_best_points_in_80_columns():
    lines = view_lines(STATE)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "12 of 40 trials, 30%" in text
    assert "about 14 min 0 s left, 30.0 s a trial, 12.3 prompts/s" in text
    assert "2 of at most 4 replicas answering; 2 infeasible, 1 failed" in text
    assert "8 on the front so far (search split)" in text
    assert lines[-1] == "and 2 more"
    assert "trial 0" in text
    assert "0.900" in text
    assert "trial 7" not in text


def test_time_left_runs_down_between_trials_and_never_below_nothing():
    assert "about 13 min 30 s left" in view_lines(STATE, 30.0)[2]
    assert "about 0 s left" in view_lines(STATE, 10_000.0)[2]


def test_nothing_is_promised_before_the_first_trial():
    fresh = STATE._replace(done=0, seconds_each=None, prompts_per_s=None, replicas=0, best=())
    text = "\n".join(view_lines(fresh))
    assert "waiting for the first trial" in text
    assert "left" not in text
    assert "prompts/s" not in text


def test_the_state_counts_what_the_trials_say():
    spec = landscape_study("toy", num_trials=9)
    trials = [_trial(spec, number, 0.5 + 0.1 * number) for number in range(3)]
    pace = Pace(9, done=2)
    pace.step()
    tally = Tally(spec)
    assert tally.count(trials[:1]) == trials[:1]
    assert tally.count(trials) == trials[1:]
    found = tally.state(front_trials(spec, trials), pace)
    assert (found.done, found.total) == (3, 9)
    assert found.replicas == 2
    assert found.prompts_per_s == pytest.approx(3 * 10 / (3 * 4.0) * 2)
    assert found.best


def _trial(spec, number, value):
    metrics = {
        item.metric: MetricEstimate(
            metric=item.metric, value=value, low=value, high=value, n=9, direction=item.direction
        )
        for item in spec.objectives
    }
    result = CandidateResult(
        candidate=str(number), split="search", metrics=metrics, num_prompts=10,
        timings=Timings(total_s=4.0), replica=f"r{number % 2}",
    )  # fmt: skip
    return TrialRecord(
        number=number, role="sampled", label=f"trial {number}", state="COMPLETE", recipe={},
        candidate=str(number), result=result, feasible=True,
        objectives={item.metric: value for item in spec.objectives},
    )  # fmt: skip


def test_the_view_writes_lines_above_itself(capsys):
    view = LiveView()
    with view.shown():
        view.watch(STATE)
        view.say("trial 3: done")
    assert "trial 3: done" in capsys.readouterr().out
    assert "12 of 40" in str(view.renderable())


def fetch(url, host=None):
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as reply:
            return reply.read().decode()
    except urllib.error.HTTPError as error:
        error.close()
        raise


def test_the_page_alone_is_served_and_only_under_this_machines_name(tmp_path):
    page = tmp_path / "report.html"
    (tmp_path / "trials.jsonl").write_text("secret")
    with served_page(page, 0) as url:
        with pytest.raises(urllib.error.HTTPError) as missing:
            fetch(url)
        assert missing.value.code == 503
        assert missing.value.headers["Refresh"] == "3"
        page.write_text("the page")
        assert fetch(url) == fetch(f"{url}report.html") == fetch(f"{url}?x=1") == "the page"
        for path in ("trials.jsonl", "../report.html", "", "%2e%2e/"):
            if path:
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    fetch(url + path)
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(url, host="evil.example:80")
        # Browsers leave a port of 80 out.
        assert fetch(url, host="127.0.0.1") == fetch(url, host="localhost") == "the page"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetch(url, host="evil.example")
    with pytest.raises(urllib.error.URLError):
        fetch(url)


def test_a_browser_that_leaves_half_way_writes_nothing_on_the_terminal(
    tmp_path, monkeypatch, capsys
):
    def leaves(handler):
        raise ConnectionResetError("the tab was closed")

    page = tmp_path / "report.html"
    page.write_text("the page")
    with served_page(page, 0) as url:
        with monkeypatch.context() as patch:
            patch.setattr(BaseHTTPRequestHandler, "end_headers", leaves)
            # The socket is closed after the server's handling of the error.
            with pytest.raises(OSError, match="closed connection"):
                fetch(url)
        assert fetch(url) == "the page"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", True), ("latin-1", False)])
def test_a_terminal_without_the_characters_gets_lines_alone(monkeypatch, encoding, shown):
    class Terminal(io.TextIOWrapper):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding=encoding))
    assert can_show() is shown


def test_a_port_that_is_taken_or_none_is_refused(tmp_path):
    with served_page(tmp_path / "report.html", 0) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        with (
            pytest.raises(UserError, match=f"needs a free port; got {port}"),
            served_page(tmp_path / "other.html", port),
        ):
            pass
    with pytest.raises(UserError, match="0 to 65535; got 70000"), served_page(tmp_path, 70000):
        pass
