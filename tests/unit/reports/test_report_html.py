"""The page stands alone, holds every number, escapes every name, and says what is missing."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import synthetic_run as synthetic

from safemerge.errors import StudyError, UserError
from safemerge.records import INTERRUPTED, FrontPoint
from safemerge.reports import load_run, render_html, write_report
from safemerge.reports.payload import payload
from safemerge.reports.wording import percent

VOID = {"meta", "wbr", "input", "br", "line", "circle", "path", "rect"}
HOSTILE = "<script>alert('x')</script> & {{payload}} \"quoted\""


class Page(HTMLParser):
    """Checks nesting, and collects text, tags and attributes."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"[ \n]+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def published(published_folder):
    run = load_run(published_folder)
    markup = render_html(run)
    return run, markup, Page(markup)


def test_page_loads_nothing_from_anywhere(published):
    _, markup, page = published
    assert "http://" not in markup
    assert "https://" not in markup
    assert not {"link", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not {"src", "srcset"} & {name for name, _ in page.attributes}
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "url(" not in markup
    assert "@import" not in markup


def test_every_number_of_the_front_is_in_the_page_with_interval_and_counts(published):
    run, _, page = published
    assert run.knee is not None
    for point in (*run.points, *run.references):
        assert point.report is not None
        assert point.search.candidate in page.text
        assert f"--pick {point.number} OUT_DIR" in page.text
        for result in (point.report, point.search):
            for metric in (synthetic.SKILL, synthetic.HARM, synthetic.LIMIT):
                found = result.metrics[metric]
                value, low, high = (
                    percent(item, unit=False) for item in (found.value, found.low, found.high)
                )
                assert value in page.text
                assert f"[{low}, {high}]" in page.text
                assert f"n\u00a0{found.n}" in page.text
    assert "2\u00a0unscored" in page.text
    assert f"{run.front.hypervolume_search:.4f}" in page.text
    assert f"{run.front.hypervolume_report:.4f}" in page.text


def document_of(markup):
    return json.loads(re.search(r'id="payload">(.*?)</script>', markup, re.DOTALL)[1])


def test_every_trial_is_listed_with_its_state_and_reason(published):
    run, markup, page = published
    told = {item["number"]: item for item in document_of(markup)["trials"]}
    for trial in run.trials:
        found = told[trial.number]
        assert found["name"] == (
            trial.label if trial.role == "reference" else f"trial {trial.number}"
        )
        assert found.get("reason") == trial.reason
        assert found["state"] == trial.state
        assert found["took"] == 41.5
    counts = run.counts
    assert sum(counts.values()) == len(run.trials)
    assert counts["failed"] >= 1
    assert counts["broken"] == 1
    assert f"{counts['failed']} failed." in page.text
    assert "failed evaluator replica died: out of memory 1 trial 11" in page.text
    assert "1 broken" in page.text


def test_figures_of_a_broken_candidate_are_not_shown(published):
    run, markup, _ = published
    document = document_of(markup)
    by_number = {trial["number"]: trial for trial in document["trials"]}
    assert len(by_number) == len(run.trials)
    assert by_number[20]["outcome"] == "broken"
    assert "search" not in by_number[20]
    knee = by_number[run.knee.number]
    assert knee["knee"] is True
    place = list(document["metrics"]).index("skill")
    assert knee["report"][place][0] == pytest.approx(run.knee.report.value("skill"), rel=1e-5)


def test_judge_provenance_timing_and_limits_are_told(published):
    run, _, page = published
    for text in (
        "accuracy 0.70, precision 0.61, recall 0.95",
        "602 human-labelled",
        "accuracy 0.894, precision 0.943, recall 0.826",
        "2,074 labelled replies",
        "It is not a harm judge",
        run.study_digest,
        "seed",
        "b" * 16,
        "What not to conclude",
        "of their working time generating",
        "Safety lost against each parent",
    ):
        assert text in page.text


def test_page_has_real_table_heads_labels_and_no_colour_alone(published):
    _, markup, page = published
    assert markup.count("<table") == markup.count("<caption>")
    assert ("scope", "row") in page.attributes
    assert ("lang", "en") in page.attributes
    for word in ("better", "worse", "not significant"):
        assert word in page.text


def test_hostile_names_are_text_and_nothing_else():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    trials, rates = synthetic.make_trials(3, synthetic=small)
    trials[0] = trials[0].model_copy(update={"label": HOSTILE})
    trials.append(synthetic.make_trial(90, None, state="FAIL", reason=HOSTILE, label=HOSTILE))
    markup = render_html(synthetic.make_run(trials, folder="a <b> & 'c'"))
    page = Page(markup)
    assert page.tags.count("script") == 2
    assert "alert('x')</script>" not in markup
    assert "<script>alert" in page.text
    assert "{{payload}}" in page.text
    assert not [name for name, _ in page.attributes if name.startswith("onload")]
    assert len(rates) == 9


def test_an_unfinished_run_says_so_and_shows_the_search_split():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    trials, _ = synthetic.make_trials(5, synthetic=small)
    page = Page(render_html(synthetic.make_run(trials)))
    assert "This run is unfinished. 5 of 40 sampled trials finished." in page.text
    assert "safemerge search STUDY.yaml --resume" in page.text
    assert "skill %, search" in page.text
    assert "skill %, report" not in page.text


def test_a_recipe_that_was_tried_again_is_counted_once():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    trials, _ = synthetic.make_trials(40, synthetic=small)
    lost, crashed = (
        trials[at].model_copy(
            update={"number": number, "state": "FAIL", "result": None, "objectives": {}} | why
        )
        for at, number, why in (
            (-1, 100, {"reason": "the replica was lost", "retried": True}),
            (-2, 101, {"reason": INTERRUPTED}),
        )
    )
    page = Page(render_html(synthetic.make_run([*trials, lost, crashed])))
    assert "40 of 40 sampled trials finished" in page.text
    assert f"and {len(synthetic.REFERENCES)} reference points" in page.text
    failed = sum(trial.state == "FAIL" for trial in trials)
    assert f"{failed} failed and 2 tried again" in page.text


def test_a_run_without_a_feasible_point_shows_the_nearest_misses():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    trials = [
        synthetic.make_trial(
            number,
            small.result(number, "search", skill=0.5, harm=0.2, refusal=0.4 + 0.1 * number),
        )
        for number in range(4)
    ]
    front = synthetic.assemble_front(synthetic.make_spec(), trials, {}, study_digest="d")
    run = synthetic.make_run(trials, front=front)
    page = Page(render_html(run))
    assert run.knee is None
    assert "No feasible point. None of 4 trials keeps every limit." in page.text
    misses = page.text[page.text.index("nearest miss") :]
    assert misses.index("trial 0") < misses.index("trial 1") < misses.index("trial 3")
    assert synthetic.LIMIT in misses


def test_a_run_of_failures_only_says_that_nothing_was_measured():
    trials = [
        synthetic.make_trial(number, None, state="FAIL", reason="unscored 37 of 200 responses")
        for number in range(3)
    ]
    page = Page(render_html(synthetic.make_run(trials)))
    assert "Every trial failed. Nothing was measured" in page.text
    assert "unscored 37 of 200 responses \u00d7 3" in page.text


def test_a_run_without_trials_says_so():
    assert "No trial has finished yet." in Page(render_html(synthetic.make_run([]))).text


def test_a_front_that_breaks_its_limits_on_the_report_split_has_no_recommendation():
    small = synthetic.Synthetic(counts={"search": 40, "report": 40})
    trial = synthetic.make_trial(0, small.result(0, "search", skill=0.5, harm=0.2, refusal=0.2))
    report = small.result(0, "report", skill=0.5, harm=0.2, refusal=0.6)
    front = synthetic.assemble_front(
        synthetic.make_spec(),
        [trial],
        {trial.candidate: report},
        study_digest="d",
    )
    page = Page(render_html(synthetic.make_run([trial], front=front)))
    assert "no point to recommend" in page.text
    assert "over budget" in page.text


def test_a_front_trial_without_a_report_result_is_named():
    small = synthetic.Synthetic(counts={"search": 40, "report": 40})
    trial = synthetic.make_trial(0, small.result(0, "search", skill=0.5, harm=0.2, refusal=0.2))
    front = synthetic.assemble_front(synthetic.make_spec(), [trial], {}, study_digest="d")
    page = Page(render_html(synthetic.make_run([trial], front=front)))
    assert "trial 0 would be on the front by the search split, but has no result" in page.text


def test_a_knee_that_is_a_parent_is_called_one():
    small = synthetic.Synthetic(counts={"search": 40, "report": 40})
    rates = {"skill": 0.6, "harm": 0.1, "refusal": 0.1}
    trial = synthetic.make_trial(
        0, small.result(0, "search", **rates), role="reference", label="aligned"
    )
    front = synthetic.assemble_front(
        synthetic.make_spec(),
        [trial],
        {trial.candidate: small.result(0, "report", **rates)},
        study_digest="d",
    )
    page = Page(render_html(synthetic.make_run([trial], front=front)))
    assert "aligned , a model you already had: no merge" in page.text


def test_a_warm_start_is_called_one_wherever_it_stands():
    small = synthetic.Synthetic(counts={"search": 40, "report": 40})
    rates = {"skill": 0.6, "harm": 0.1, "refusal": 0.1}
    recipe = synthetic.recipe_document({"aligned": 0.3})
    start = {"name": "found", "recipe": recipe, "num_layers": 2}
    spec = synthetic.make_spec(started=[start])
    as_it_is = synthetic.make_trial(
        0, small.result(0, "search", **rates), role="reference", label="start found"
    )
    worse = small.result(1, "search", skill=0.5, harm=0.2, refusal=0.2)
    nearest = synthetic.make_trial(1, worse).model_copy(update={"start": "found"})
    front = synthetic.assemble_front(
        spec,
        [as_it_is, nearest],
        {as_it_is.candidate: small.result(0, "report", **rates)},
        study_digest="d",
    )
    page = Page(render_html(synthetic.make_run([as_it_is, nearest], spec=spec, front=front)))
    assert "start found , a recipe that the search started from: no merge" in page.text
    assert "#0, warm start" in page.text
    run = synthetic.make_run([as_it_is, nearest], spec=spec, front=front)
    assert payload(run)["trials"][1]["notes"] == ["for start found"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_run_is_the_users_error(tmp_path, exists):
    folder = tmp_path / "nothing"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError, match=r"nothing: must hold a run \(study.json\)"):
        write_report(folder)


def test_a_front_that_names_an_unknown_trial_is_refused():
    small = synthetic.Synthetic(counts={"search": 20, "report": 20})
    rates = {"skill": 0.6, "harm": 0.1, "refusal": 0.1}
    front = synthetic.assemble_front(synthetic.make_spec(), [], {}, study_digest="d")
    point = FrontPoint(
        number=7,
        label="trial 7",
        candidate=synthetic.digest_of(7),
        role="sampled",
        search=small.result(7, "search", **rates),
        report=small.result(7, "report", **rates),
        recipe={},
    )
    front = front.model_copy(update={"points": [point]})
    with pytest.raises(StudyError, match=r"front.json names trial 7"):
        render_html(synthetic.make_run([], front=front))


def test_importing_reports_is_light():
    code = (
        "import sys, safemerge.reports; "
        "heavy = {'matplotlib', 'rich', 'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules); "
        "assert not heavy, heavy; "
        "assert sorted(safemerge.reports.__all__) == safemerge.reports.__all__; "
        "[getattr(safemerge.reports, name) for name in safemerge.reports.__all__]; "
        "heavy = {'matplotlib', 'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_an_unknown_name_is_an_attribute_error():
    import safemerge.reports

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = safemerge.reports.no_such_name


def test_a_run_that_a_budget_ended_is_whole_and_says_which(published_folder):
    run = load_run(published_folder)
    spec = synthetic.make_spec(num_trials=run.num_sampled + 30)
    shorter = replace(run, spec=spec)
    assert not shorter.is_complete
    told = "budget.wall_time of 30 s is spent (31 s)"
    ended = replace(shorter, front=run.front.model_copy(update={"ended_by": told}))
    assert ended.is_complete
    page = render_html(ended)
    assert f"sampled trials finished ({told})" in page
    assert "This run is unfinished." not in page
