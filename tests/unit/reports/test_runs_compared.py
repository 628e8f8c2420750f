"""Runs side by side: what is paired, what is refused, and what is said of it."""

import json
import re
import shutil

import numpy as np
import pytest
import synthetic_run as synthetic
from browser import Browser, chromium

import safemerge
from safemerge.cache import CACHE_VARIABLE
from safemerge.cli import main
from safemerge.config.metric import Metric
from safemerge.errors import UserError
from safemerge.pareto import hypervolume
from safemerge.remote_run import RemoteRun
from safemerge.reports.compared import verdicts
from safemerge.reports.settings import differing_settings
from safemerge.reports.volume import volumes

COUNTS = {"search": 30, "report": 60}


def write(folder, *, num_sampled=12, seed=0, publish=True, **changes):
    made = synthetic.Synthetic(seed=seed, counts=COUNTS)
    spec = synthetic.make_spec(num_trials=num_sampled, **changes)
    return synthetic.write_run(
        folder, spec=spec, num_sampled=num_sampled, synthetic=made, publish=publish
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [write(folder / "plain"), write(folder / "longer", num_sampled=20, seed=0)]


@pytest.fixture(scope="module")
def compared(runs):
    return safemerge.compare(runs)


def test_one_candidate_in_two_runs_differs_by_nothing(compared):
    common = [item for item in compared.pairs if item.kind == "common"]
    assert {item.metric for item in common} == set(compared.metrics)
    assert {item.label for item in common} >= {"smol", "aligned", "mean"}
    assert all(item.value == 0.0 for item in common)
    assert all(item.verdict == "not significant" for item in common)


def test_a_candidate_that_is_broken_on_the_split_is_in_no_pair(runs, tmp_path):
    folder = shutil.copytree(runs[1], tmp_path / "longer")
    front = json.loads((folder / "front.json").read_text())
    (smol,) = (item for item in front["references"] if item["label"] == "smol")
    smol["report"]["broken"] = "loops"
    (folder / "front.json").write_text(json.dumps(front))
    found = safemerge.compare([runs[0], folder])
    assert "aligned" in {item.label for item in found.pairs}
    assert "smol" not in {item.label for item in found.pairs}


def test_a_run_at_a_url_is_compared_under_its_urls_name(runs, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket/results/remote"
    with RemoteRun(url).driven(print) as folder:
        write(folder)
    found = safemerge.compare([runs[0], url])
    assert [(run.name, run.folder) for run in found.runs] == [
        ("plain", str(runs[0])),
        ("remote", url),
    ]
    with pytest.raises(UserError, match=f"got {re.escape(url)} twice"):
        safemerge.compare([url, url])


def test_hypervolumes_that_may_be_alike_are_not_called_equal(runs, compared):
    (told,) = verdicts(compared)
    assert compared.runs[1].gain.low <= 0 <= compared.runs[1].gain.high
    assert "the hypervolumes do not differ significantly" in told


def test_all_pairs_are_one_family(compared):
    assert {item.num_comparisons for item in compared.pairs} == {len(compared.pairs)}


def test_hypervolumes_share_one_reference_and_are_those_of_the_points(runs, compared):
    assert compared.reference == {"skill": 0.0, "unsafe.harmful_score": 1.0}
    for run, found in zip(map(safemerge.load_run, runs), compared.runs, strict=True):
        front = json.loads((run.folder / "front.json").read_text())
        assert found.hypervolume.value == pytest.approx(front["hypervolume_report"], abs=1e-12)
        assert found.hypervolume.low < found.hypervolume.high
    first, second = compared.runs
    assert first.gain is None
    assert second.gain.value == pytest.approx(second.hypervolume.value - first.hypervolume.value)


def test_the_worst_reference_of_the_runs_is_taken(tmp_path, runs):
    objectives = synthetic.study_document()["objectives"]
    objectives[0]["reference"], objectives[1]["reference"] = 0.3, 0.7
    other = write(tmp_path / "other", objectives=objectives)
    for order in ([runs[0], other], [other, runs[0]]):
        found = safemerge.compare(order)
        assert found.reference == {"skill": 0.0, "unsafe.harmful_score": 1.0}
        first, second = (run.hypervolume.value for run in found.runs)
        assert first == pytest.approx(second)


def test_a_better_run_is_said_to_be_better(tmp_path, runs):
    trials, rates = synthetic.make_trials(12, synthetic=synthetic.Synthetic(counts=COUNTS))
    better = {
        number: {**rate, "skill": min(rate["skill"] + 0.15, 0.86), "harm": 0.4 * rate["harm"]}
        for number, rate in rates.items()
    }
    made = synthetic.Synthetic(counts=COUNTS)
    lifted = [
        trial
        if trial.result is None or trial.result.broken
        else synthetic.make_trial(
            trial.number,
            made.result(trial.number, "search", **better[trial.number]),
            role=trial.role,
            label=trial.label,
            params=trial.params,
            recipe=trial.recipe,
        )
        for trial in trials
    ]
    spec = synthetic.make_spec(num_trials=12)
    folder = synthetic.write_run(
        tmp_path / "better", spec=spec, trials=lifted, publish=False, synthetic=made
    )
    compared = safemerge.compare([runs[0], folder])
    assert compared.split == "search"  # for one run has not published
    assert compared.runs[1].gain.low > 0
    assert "dominates more" in verdicts(compared)[0]
    back = safemerge.compare([folder, runs[0]])
    assert back.runs[1].gain.high < 0
    assert back.runs[1].gain.value == pytest.approx(-compared.runs[1].gain.value)


def test_numbers_of_a_suite_that_is_scored_otherwise_are_refused(tmp_path, runs, capsys):
    suites = synthetic.study_document()["suites"]
    suites[0]["task"]["pattern"] = "(x)"
    other = write(tmp_path / "other", suites=suites)
    compared = safemerge.compare([runs[0], other])
    (refused,) = compared.suites
    assert refused.suite == "arithmetic"
    assert "task.pattern" in refused.reason
    assert "skill" not in compared.metrics  # the mean of that suite and another
    assert compared.no_hypervolume.startswith("skill")
    assert all(run.hypervolume is None for run in compared.runs)
    assert {item.metric for item in compared.pairs} == {
        "unsafe.harmful_score",
        "benign.over_refusal_rate",
    }
    assert main(["compare", str(runs[0]), str(other)]) == 0
    out = capsys.readouterr().out
    assert "Not compared: suite arithmetic" in out
    assert max(map(len, out.splitlines())) <= 80


def test_other_prompts_are_refused_though_they_are_declared_alike(tmp_path, runs):
    made = synthetic.Synthetic(counts={"search": 30, "report": 50})
    spec = synthetic.make_spec(num_trials=12)
    other = synthetic.write_run(tmp_path / "o", spec=spec, num_sampled=12, synthetic=made)
    compared = safemerge.compare([runs[0], other])
    assert "50 of 60 the same" in compared.suites[0].reason
    assert compared.metrics == {}
    assert compared.pairs == []
    assert "nothing to compare" in verdicts(compared)[0]


def test_settings_that_differ_are_named_by_path():
    document = synthetic.study_document(seed=8)
    document["spaces"][0]["method"]["density"] = 0.25
    del document["experts"][2]
    document["spaces"][0]["method"]["weights"] = {"aligned": 1.0, "arithmetic": 0.5}
    del document["spaces"][0]["vary"]["method.weights.reviews"]
    from safemerge.config.study import StudySpec

    other = StudySpec.model_validate_json(json.dumps(document))
    found = {
        item.setting: item.values for item in differing_settings([synthetic.make_spec(), other])
    }
    assert found["seed"] == ["7", "8"]
    assert found["spaces.ties.method.density"] == ["0.5", "0.25"]
    assert found["experts.reviews"][1] == "(absent)"


def test_a_checkpoint_that_lies_elsewhere_is_no_other_setting():
    document = synthetic.study_document()
    document["base"]["path"] = "/elsewhere/smol"
    from safemerge.config.study import StudySpec

    moved = StudySpec.model_validate_json(json.dumps(document))
    assert differing_settings([synthetic.make_spec(), moved]) == []


def test_the_interval_of_a_hypervolume_covers_the_true_one():
    """float64: of 60 runs at a known truth, most intervals hold it, and not all do by width."""
    metrics = [Metric("a.accuracy", "maximize", "skill"), Metric("b.harm", "minimize", "harm")]
    truth = [(0.8, 0.5), (0.6, 0.2), (0.4, 0.1)]
    exact = hypervolume(truth, [0.0, 1.0], ["maximize", "minimize"])
    hits, widths = 0, []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        points = []
        for number, (skill, harm) in enumerate(truth):
            scores = {}
            for suite, key, rate in (("a", "accuracy", skill), ("b", "harm", harm)):
                scores[suite] = [
                    synthetic.Score(sample_id=f"{place}", values={key: float(hit)})
                    for place, hit in enumerate(generator.random(150) < rate)
                ]
            estimates = {
                metric.name: synthetic.estimate(
                    metric.name,
                    [score.values[metric.name[2:]] for score in scores[metric.name[0]]],
                    direction=metric.direction,
                )
                for metric in metrics
            }
            points.append(
                synthetic.CandidateResult(
                    candidate=str(number), split="report", metrics=estimates, scores=scores
                )
            )
        ((found,), _) = volumes([points], metrics, [0.0, 1.0], seed=seed)
        hits += found.low <= exact <= found.high
        widths.append(found.high - found.low)
    assert 51 <= hits <= 60
    assert 0.02 < np.mean(widths) < 0.2


@pytest.mark.parametrize(
    ("given", "told"), [(0, "needs 2 to 8 runs; got 0"), (1, "got 1"), (9, "got 9")]
)
def test_too_few_and_too_many_runs_are_refused(runs, given, told):
    with pytest.raises(UserError, match=told):
        safemerge.compare([runs[0]] * given)


def test_a_run_is_not_compared_with_itself(runs, capsys):
    assert main(["compare", str(runs[0]), f"{runs[0]}/."]) == 2
    assert "each run once" in capsys.readouterr().err


def test_json_is_the_document(runs, compared, capsys):
    assert main(["compare", *map(str, runs), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == compared.resolved()


@pytest.mark.skipif(chromium() is None, reason="needs a Chromium on the path or in CHROMIUM")
def test_the_page_shows_every_front_and_fits_a_phone(runs, tmp_path, compared):
    page = tmp_path / "compare.html"
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 0
    browser = Browser(tmp_path)
    try:
        for width in (1366, 390):
            browser.open(page, width=width, height=800)
            shown = browser.run("document.querySelectorAll('#compare .hit').length")
            assert shown == sum(len(run.points) for run in compared.runs)
            assert browser.run("document.querySelectorAll('#compare path.own-line').length") == 2
            assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run("document.querySelector('#compare .hit').focus()")
        assert browser.run("document.querySelector('.tip').innerText").startswith("plain: ")
        browser.press("ArrowRight")
        assert browser.run("document.querySelectorAll('.tip').length") == 1
        assert browser.errors == []
    finally:
        browser.close()
