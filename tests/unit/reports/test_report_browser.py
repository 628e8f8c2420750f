"""The page in a headless Chromium: first screen, pins, filters, downloads, keyboard, print."""

import csv
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_run as synthetic
from browser import Browser, chromium

from safemerge.reports import load_run, render_html
from safemerge.reports.wording import percent

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="needs a Chromium on the path or in CHROMIUM"
)
DESKTOP, PHONE = (1366, 768), (390, 844)
CONTRAST = """
(() => {
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number).slice(0, 3).map((v) => v / 255);
    const [r, g, b] = parts.map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const names = [".lead", ".judged", "nav a", "caption", ".figures dt", ".figures span", "code"];
  return names.map((name) => {
    const ink = light(getComputedStyle(document.querySelector(name)).color);
    return [name, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5);
})()
"""
SMALL = """
[...document.querySelectorAll('button, summary, select, input[type=search], nav a, .hit')]
  .filter((node) => node.checkVisibility() && node.getBoundingClientRect().width)
  .map((node) => [node.outerHTML.slice(0, 80), node.getBoundingClientRect().height])
  .filter(([, height]) => height < 23.9)
"""
BOTTOMS = """
Object.fromEntries(['.lead', '.judged', '#scatter', '.figures', '#recommended .command']
  .map((name) => [name, document.querySelector(name).getBoundingClientRect().bottom]))
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("downloads"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(published_folder):
    run = load_run(published_folder)
    path = published_folder / "page.html"
    path.write_text(render_html(run), encoding="utf-8")
    return run, path


@pytest.fixture
def opened(browser, page):
    """The page on a desktop; whatever a test does, the console must stay empty."""
    browser.open(page[1])
    yield browser
    assert browser.errors == []


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, False), (DESKTOP, True)])
def test_the_first_screen_holds_verdict_judge_chart_figures_and_command(browser, page, size, dark):
    width, height = size
    browser.open(page[1], width=width, height=height, dark=dark)
    bottoms = browser.run(BOTTOMS)
    assert max(bottoms.values()) <= height, bottoms
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.querySelectorAll('#scatter .hit').length") >= len(page[0].points)
    assert browser.run(CONTRAST) == []
    assert browser.run(SMALL) == []
    assert browser.errors == []


def test_points_are_pinned_compared_and_unpinned_with_the_mouse(opened, page):
    run, _ = page
    sampled = [item for item in run.points if item.number != run.knee.number][:2]
    first, second = (item.number for item in sampled)
    opened.click(f".hit[data-trial='{first}']")
    panel = "document.querySelector('#pinned').innerText"
    assert sampled[0].name in opened.run(panel)
    assert f"--pick {first} OUT_DIR" in opened.run(panel)
    assert opened.run("document.querySelector('#recommended').hidden")
    opened.click(f".hit[data-trial='{second}']")
    text = opened.run(panel)
    assert f"A: {sampled[0].name}, B: {sampled[1].name}" in text
    assert "A minus B" in text
    assert "not significant" in text or "better" in text or "worse" in text
    assert opened.run("document.querySelectorAll('circle.pin-mark').length") == 2
    # The metrics' names keep a readable width beside three columns of figures.
    rows = "[...document.querySelectorAll('#pinned table')[0].querySelectorAll('tbody tr')]"
    assert max(opened.run(f"{rows}.map((row) => row.getBoundingClientRect().height)")) < 110
    assert opened.run(f"{rows}.every((row) => row.scrollWidth <= 362)")
    opened.press("Escape")
    assert opened.run(panel) == ""
    assert not opened.run("document.querySelector('#recommended').hidden")


def test_points_are_reached_and_pinned_with_the_keyboard_alone(opened):
    opened.run("document.querySelector('#scatter .hit[tabindex=\"0\"]').focus()")
    number = "document.activeElement.dataset.trial"
    before = opened.run(number)
    assert opened.run("document.querySelectorAll('.hit[tabindex=\"0\"]').length") == 1
    opened.press("ArrowRight")
    after = opened.run(number)
    assert after != before
    assert opened.run("document.querySelectorAll('.tip').length") == 1
    opened.press("Enter")
    assert opened.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert opened.run("document.querySelector('#pinned h3').innerText").startswith("A: ")
    opened.press("Escape")
    assert opened.run("document.activeElement.getAttribute('aria-pressed')") == "false"


def test_a_row_and_its_point_are_marked_together(opened, page):
    run, _ = page
    number = run.knee.number
    opened.run(
        f"document.querySelector('.front tr[data-row=\"{number}\"] td')"
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    point = f"document.querySelector('.hit[data-trial=\"{number}\"]')"
    row = f"document.querySelector('.front tr[data-row=\"{number}\"]')"
    assert opened.run(f"{point}.matches('.on')")
    opened.run(f"{point}.focus()")
    assert opened.run(f"{row}.matches('.linked')")


def test_trials_are_searched_filtered_and_sorted(opened, page):
    run, _ = page
    rows = "document.querySelectorAll('table.trials tbody tr').length"
    assert opened.run(rows) == min(25, len(run.trials))
    opened.run(
        "document.querySelector('#trials-search').value = 'out of memory';"
        "document.querySelector('#trials-search').dispatchEvent(new Event('input'))"
    )
    failed = sum(trial.state == "FAIL" for trial in run.trials)
    assert opened.run(rows) == failed
    opened.run(
        "document.querySelector('#trials-search').value = '';"
        "document.querySelector('#trials-search').dispatchEvent(new Event('input'));"
        "document.querySelector('#trials-outcome').value = 'front';"
        "document.querySelector('#trials-outcome').dispatchEvent(new Event('change'))"
    )
    assert opened.run(rows) == len(run.points)
    skill = "table.trials thead th:nth-child(3) button"
    column = "[...document.querySelectorAll('table.trials tbody td:nth-child(3) b')]"
    values = f"{column}.map((node) => Number(node.innerText))"
    opened.click(skill)
    up = opened.run(values)
    opened.click(skill)
    assert up == sorted(up)
    assert opened.run(values) == up[::-1]
    assert opened.run("document.activeElement.dataset.column") == "2"
    # Only a head's button sorts; a row's pins, and its cells end at one line.
    glyph = "getComputedStyle(document.querySelector('table.trials tbody th button'), '::after')"
    assert opened.run(f"{glyph}.content") == "none"
    ends = "[...document.querySelector('table.trials tbody tr').cells].map((cell) =>"
    assert len(set(opened.run(f"{ends} cell.getBoundingClientRect().bottom)"))) == 1


def test_parameters_show_every_sampled_trial_with_values(opened, page):
    run, _ = page
    opened.run("document.querySelector('#parameters').scrollIntoView()")
    opened.run("new Promise((done) => setTimeout(done, 200))")
    valued = [
        trial
        for trial in run.trials
        if trial.role == "sampled" and trial.result is not None and trial.result.broken is None
    ]
    marks = "document.querySelectorAll('#parameters .multiple')[0].querySelectorAll('path').length"
    assert opened.run(marks) == len(valued) > len(run.points)


def test_without_a_feasible_point_trials_are_still_pinned(browser, tmp_path):
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    trial = synthetic.make_trial(0, small.result(0, "search", skill=0.5, harm=0.2, refusal=0.9))
    assert not trial.feasible
    path = tmp_path / "page.html"
    path.write_text(render_html(synthetic.make_run([trial])), encoding="utf-8")
    browser.open(path)
    browser.click("#trials-table .pin")
    assert browser.run("document.querySelector('#pinned h3').innerText") == "A: trial 0"
    assert browser.errors == []


def test_long_names_stay_inside_the_chart_of_a_phone(browser, page, tmp_path):
    run, _ = page
    name = "Meta-Llama-3.1-8B-Instruct-abliterated-safety-realigned-v2"
    trials = tuple(
        trial.model_copy(update={"label": name}) if trial.label == "aligned" else trial
        for trial in run.trials
    )
    path = tmp_path / "page.html"
    path.write_text(render_html(replace(run, trials=trials)), encoding="utf-8")
    browser.open(path, width=390, height=844)
    ends = "[...document.querySelectorAll('#scatter text.label')].map((node) =>"
    assert max(browser.run(f"{ends} node.getBoundingClientRect().right)")) <= 390
    assert name in browser.run("document.querySelector('#scatter').innerHTML")
    assert browser.errors == []


def test_figures_are_rounded_as_in_the_tables(opened, page):
    run, _ = page
    for point in run.points:
        opened.run(f"document.querySelector('.hit[data-trial=\"{point.number}\"]').focus()")
        tip = opened.run("document.querySelector('.tip').innerText")
        for metric in (synthetic.SKILL, synthetic.HARM, synthetic.LIMIT):
            told = percent(point.shown.value(metric)).replace("\u00a0", " ")
            assert f"{metric}: {told} [" in tip


def test_downloads_hold_every_trial(browser, page, tmp_path):
    run, path = page
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.open(path)
    for kind in ("csv", "json"):
        browser.click(f"#download-{kind}")
    wanted = [tmp_path / "demo-trials.csv", tmp_path / "demo-report.json"]
    browser.run("new Promise((done) => setTimeout(done, 400))")
    for _ in range(20):
        if all(file.exists() and file.stat().st_size for file in wanted):
            break
        browser.run("new Promise((done) => setTimeout(done, 200))")
    with wanted[0].open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["number"]) for row in rows] == sorted(trial.number for trial in run.trials)
    knee = next(row for row in rows if row["knee"] == "true")
    assert float(knee["report.skill.value"]) == pytest.approx(
        run.knee.report.value("skill"), rel=1e-5
    )
    document = json.loads(wanted[1].read_text(encoding="utf-8"))
    assert len(document["trials"]) == len(run.trials)
    assert browser.errors == []


def test_it_prints_on_at_most_eight_pages(opened):
    pdf = opened.pdf()
    assert 1 < len(re.findall(rb"/Type\s*/Page[^s]", pdf)) <= 8


def test_a_thousand_trials_load_in_a_second_and_stay_small(browser, published_folder, tmp_path):
    run = load_run(published_folder)
    copies = [
        trial.model_copy(
            update={"number": 100 + 20 * turn + place, "candidate": f"{turn}-{place}"}
        )
        for turn in range(5, 54)
        for place, trial in enumerate(item for item in run.trials if item.role == "sampled")
    ]
    path = tmp_path / "page.html"
    whole = replace(run, trials=(*run.trials, *copies))
    path.write_text(render_html(whole), encoding="utf-8")
    assert len(whole.trials) > 1000
    assert path.stat().st_size < 3_000_000
    browser.call("Performance.enable", timeDomain="threadTicks")
    browser.open(path)
    # CPU time, for other processes take their share of the clock.
    spent = {
        item["name"]: item["value"] for item in browser.call("Performance.getMetrics")["metrics"]
    }
    assert spent["TaskDuration"] < 1.0, spent
    assert browser.run("document.documentElement.scrollHeight") < 14_000
    assert browser.errors == []


def test_axe_finds_no_violation(opened):
    axe = os.environ.get("AXE_CORE", "")
    if not Path(axe).is_file():
        pytest.skip("needs AXE_CORE, the path of axe-core's axe.min.js")
    opened.run(Path(axe).read_text(encoding="utf-8") + "; 0")
    found = opened.run("axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes[0].html]))")
    assert found == []
