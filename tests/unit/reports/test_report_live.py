"""The page of a running search: when it is written, what it says, and that it keeps its place."""

import pytest
import synthetic_run as synthetic
from browser import Browser, chromium

from safemerge.reports import live
from safemerge.reports.live import LEAST_S, SHARE, LivePage
from safemerge.store import RunStore

LATER = """
window.now = window.setTimeout.bind(window);
window.setTimeout = (act, ms) => { if (ms > 4000) window.due = [act, ms]; else now(act, ms); };
"""


class Clock:
    """Goes on by what drawing a page is made to cost, and by what a test adds."""

    def __init__(self, monkeypatch, cost):
        self.now, self.cost, self.drawn = 1000.0, cost, []
        draw = live.render_html

        def slow(run, **options):
            self.now += self.cost
            self.drawn.append(options["refresh_s"])
            return draw(run, **options)

        monkeypatch.setattr(live, "render_html", slow)

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "demo").create(synthetic.make_spec())


@pytest.fixture(scope="module")
def trials():
    made = synthetic.Synthetic(counts={"search": 10, "report": 10})
    return synthetic.make_trials(6, synthetic=made)[0]


def page_of(store, clock, said):
    return LivePage(store.folder, store.study(), say=said.append, clock=clock)


def test_the_next_page_waits_until_the_last_one_cost_a_hundredth(store, trials, monkeypatch):
    clock = Clock(monkeypatch, cost=0.5)
    page = page_of(store, clock, [])
    begun = clock.now
    assert page.offer(trials[:1])
    for count in range(2, len(trials) + 1):
        while not page.offer(trials[:count]):
            clock.now += 0.5
        elapsed = clock.now - begun
        assert page.spent_s - 0.5 <= SHARE * elapsed * 1.0001
    assert len(clock.drawn) == len(trials)
    assert max(clock.drawn) == pytest.approx(0.5 * (1 - SHARE) / SHARE)


def test_a_quick_page_still_leaves_a_while_and_nothing_new_is_not_drawn(
    store, trials, monkeypatch
):
    clock = Clock(monkeypatch, cost=0.0)
    page = page_of(store, clock, [])
    assert page.offer([])
    assert not page.offer(trials[:1])  # too soon
    clock.now += LEAST_S
    assert page.offer(trials[:1])
    clock.now += 1000 * LEAST_S
    assert not page.offer(trials[:1])  # nothing new
    assert page.offer(trials[:2])


def test_the_last_page_of_a_search_that_ended_early_says_how_to_resume(store, trials, monkeypatch):
    page = page_of(store, Clock(monkeypatch, cost=0.0), [])
    page.offer(trials)
    path = store.folder / "report.html"
    assert "This search is running." in path.read_text()
    assert '"refresh_s":5.0' in path.read_text()
    page.stop(trials)
    assert "This search is running." not in path.read_text()
    assert "--resume" in path.read_text()
    assert "refresh_s" not in path.read_text().split('id="payload"')[1].split("</script>")[0]


def test_a_page_that_cannot_be_written_is_said_once_and_stops_nothing(store, trials, monkeypatch):
    clock, said = Clock(monkeypatch, cost=0.0), []
    page = page_of(store, clock, said)
    (store.folder / "report.html").mkdir()
    assert not page.offer(trials[:1])
    clock.now += 1000
    assert not page.offer(trials)
    page.stop(trials)
    (line,) = said
    assert line.startswith("report.html is not kept up to date: ")


def test_a_fault_of_the_page_itself_ends_no_search(store, trials, monkeypatch):
    def fails(run, **options):
        raise ValueError("a value that JSON lacks")

    monkeypatch.setattr(live, "render_html", fails)
    said = []
    page = LivePage(store.folder, store.study(), say=said.append)
    assert not page.offer(trials)
    page.stop(trials)
    assert said == ["report.html is not kept up to date: a value that JSON lacks"]


@pytest.mark.skipif(chromium() is None, reason="needs a Chromium on the path or in CHROMIUM")
def test_the_page_loads_itself_again_with_pins_filter_and_place(
    store, trials, monkeypatch, tmp_path
):
    page = page_of(store, Clock(monkeypatch, cost=0.0), [])
    page.offer(trials[:-1])
    browser = Browser(tmp_path)
    try:
        # The page's own clock is the test's: what it puts off for seconds waits in `due`.
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=LATER)
        browser.open(store.folder / "report.html")
        assert browser.run("due[1]") == 1000 * LEAST_S
        number = browser.run("document.querySelector('.hit').dataset.trial")
        browser.click(f".hit[data-trial='{number}']")
        rows = "document.querySelectorAll('table.trials tbody tr').length"
        before = browser.run(rows)
        browser.run("scrollTo(0, 400); window.old = true")
        page.stop(trials)
        browser._loaded = False
        browser.run("now(due[0], 50) && true")
        while not browser._loaded:
            browser._next()
        browser.run("new Promise((done) => setTimeout(done, 400))")
        assert browser.run("window.old") is None
        assert browser.run("window.due") is None  # the search has ended
        assert browser.run(rows) == before + 1
        assert browser.run("document.querySelector('#pinned h3').innerText").startswith("A: ")
        assert browser.run(f"history.state.safemerge.pins[0] === {number}")
        assert abs(browser.run("scrollY") - 400) < 60
        assert browser.errors == []
    finally:
        browser.close()
