"""The metric and the judge of ``examples/``, installed as anybody's: validated, run, picked."""

import json
from pathlib import Path

import pytest

from safemerge import plugins
from safemerge.api.pick import pick_point
from safemerge.cli import main
from safemerge.config.added_metric import load_metric
from safemerge.config.document import parse_document
from safemerge.config.metric import metrics_of
from safemerge.config.schema import json_schema
from safemerge.config.study import StudySpec
from safemerge.config.suite import SuiteSpec
from safemerge.data.sample import Sample
from safemerge.data.suite import LoadedSuite
from safemerge.errors import ConfigError, ScoringError
from safemerge.evaluation import AnsweredSplit, PreparedSplit, score_candidate
from safemerge.extension import metric
from safemerge.records import Answer, Front, FrontPoint, Response, Score
from safemerge.reports.comparison import paired_difference
from safemerge.scoring.added_metric import added_estimates
from safemerge.scoring.judge import DeclaredJudge, Exchange, added_judge
from safemerge.scoring.local_judge import local_judge
from safemerge.testing.landscapes import landscape_study

ROOT = Path(__file__).resolve().parents[2]
FILE = {"kind": "file", "path": "rows.jsonl"}
SPLITS = {
    "search": {"source": {**FILE, "stop": 4}, "label": "gold"},
    "report": {"source": {**FILE, "start": 4}, "label": "gold"},
}
JUDGE = {"kind": "added", "use": "keywords", "name": "words", "arguments": {"words": ["Sure"]}}


@pytest.fixture(scope="module")
def site(install_examples):
    """A folder that pip has installed the examples into."""
    return install_examples("metric", "judge")


pytestmark = pytest.mark.usefixtures("examples")


def suite(*metrics, **changes):
    task = {"kind": "exact_match"}
    document = {"name": "sums", "task": task, **SPLITS, "metrics": list(metrics), **changes}
    return parse_document(document, SuiteSpec, where="suite")


def harm(**changes):
    plain = {key: {"source": part["source"]} for key, part in SPLITS.items()}
    judge = {**JUDGE, **changes}
    document = {"name": "harm", "task": {"kind": "harm", "judge": judge, "same_judge": True}}
    return parse_document({**document, **plain}, SuiteSpec, where="suite")


def scored(declared, says, *, judges=(), split="search", metrics=True):
    """A candidate's result on a suite: what it says, by gold answer or in order."""
    samples = tuple(
        Sample(f"s{place}", f"prompt {place}", label=gold) for place, (gold, _) in enumerate(says)
    )
    loaded = LoadedSuite(
        declared.name, declared.task, split, samples,
        metrics=tuple(item.loaded() for item in declared.metrics) if metrics else (),
    )  # fmt: skip
    responses = tuple(
        Response(sample_id=f"s{place}", text=text, num_tokens=3, finished=True, candidate="c")
        for place, (_, text) in enumerate(says)
    )
    prepared = PreparedSplit(split, (loaded,), (tuple(samples),), (judges,))
    answered = AnsweredSplit("c", responses, 0.0, 0.0, 0.0)
    return score_candidate(answered, prepared, aggregates={}, max_unscored=0.5)


SAYS = [("1", "1"), ("2", "two"), ("3", f"{'well ' * 25}\n3"), ("4", "4")]


def test_a_metric_of_a_package_is_a_metric_of_its_suite_with_a_version():
    made = suite("brief_and_right", "num_words")
    assert [row.name for row in made.measures] == ["accuracy", "brief_and_right", "num_words"]
    assert [row.unit for row in made.measures] == ["share", "share", "number"]
    assert {item.plugin for item in made.metrics} == {"safemerge-brevity 1.0"}
    assert SuiteSpec.model_validate_json(made.model_dump_json(by_alias=True)) == made
    assert "metrics" not in suite().resolved()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metrics": ["brief"]}, "must be safemerge's own or of an installed package; got none"),
        ({"metrics": ["num_words", "num_words"]}, "must be unique in a suite; got 'num_words'"),
        (
            {"metrics": [{"use": "num_words", "plugin": "safemerge-brevity 0.9"}]},
            "must be the version that the file was written with, safemerge-brevity 0.9; got",
        ),
    ],
)
def test_a_metric_that_is_missing_repeated_or_of_another_version_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        suite(**changes)


def test_values_of_each_answer_have_intervals_and_paired_comparisons():
    made = suite("brief_and_right", "num_words")
    result = scored(made, SAYS)
    brief, words = (result.metrics[f"sums.{name}"] for name in ("brief_and_right", "num_words"))
    assert result.value("sums.accuracy") == 0.75
    assert (brief.value, brief.n, brief.unit, brief.direction) == (0.5, 4, "share", "maximize")
    assert brief.low < 0.5 < brief.high
    assert (words.value, words.unit) == ((1 + 1 + 26 + 1) / 4, "number")
    assert words.low < words.value < words.high
    other = scored(made, [("1", "1"), ("2", "2"), ("3", "3"), ("4", "4")])
    found = paired_difference(other, result, metric="sums.num_words")
    assert (found.value, found.n, found.unit) == (-25 / 4, 4, "number")
    assert paired_difference(other, result, metric="sums.brief_and_right").value == 0.5


def answers(*texts, unscored=0):
    made = [
        Answer(f"p{place}", None, text, 3, True, Score(sample_id=f"s{place}", values={"x": 1.0}))
        for place, text in enumerate(texts)
    ]
    for place in range(unscored):
        score = Score(sample_id=f"u{place}", unscored="cut")
        made.append(Answer("p", None, "", 3, False, score))
    return made


def one(function, given, *, unit="share", groups=None):
    made = metric(direction="maximize", role="skill", unit=unit)(function)
    scores, (estimate,) = added_estimates("s", [made], given, groups=groups)
    return scores, estimate


def test_one_number_of_all_answers_has_a_jackknife_interval_over_groups():
    def longest(given):
        return float(max(len(answer.text) for answer in given))

    given = answers("a", "bb", "ccc", "dddd", unscored=1)
    scores, found = one(longest, given, unit="number")
    assert (found.metric, found.value, found.n, found.unscored) == ("s.longest", 4.0, 4, 1)
    assert found.low < 4.0 < found.high
    assert all("longest" not in score.values for score in scores)
    whole = dict.fromkeys([f"s{place}" for place in range(4)], "one")
    _, grouped = one(longest, given, unit="number", groups=whole)
    assert (grouped.low, grouped.high) == (None, None)


def test_an_answer_without_a_value_is_unscored_and_nothing_scored_has_no_value():
    def known(given):
        return [None if answer.text == "?" else 1.0 for answer in given]

    scores, found = one(known, answers("a", "?", "b", unscored=1))
    assert (found.value, found.n, found.unscored) == (1.0, 2, 2)
    assert ["known" in score.values for score in scores] == [True, False, True, False]
    assert one(known, answers(unscored=2))[1].value is None


@pytest.mark.parametrize(
    ("gives", "told"),
    [
        (lambda given: [1.0], "a value for each of 2 answers; got 1 values"),
        (lambda given: [2.0, 0.0], r"a share must be in \[0, 1\]; got 2.0"),
        (lambda given: [float("nan"), 0.0], "got nan"),
        (lambda given: ["a", 0.0], "got str"),
        (lambda given: None, "got 1 values|got NoneType"),
        (lambda given: given[5].text, r"failed; got IndexError\.$"),
    ],
)
def test_a_metric_that_breaks_its_promise_is_an_error_without_the_answers_text(gives, told):
    with pytest.raises(ScoringError, match=rf"suite 's', metric '<lambda>': .*{told}"):
        one(gives, answers("secret", "b"))


def test_a_plain_function_is_no_metric():
    plugins.register(plugins.METRICS, "plain", len)
    with pytest.raises(ConfigError, match=r"metric 'plain': must be a function with"):
        load_metric("plain")
    plugins.register(plugins.METRICS, "mine", metric(direction="maximize", role="skill")(len))
    assert load_metric("mine").row.name == "mine"


def test_a_judge_of_a_package_judges_and_its_arguments_are_checked():
    made = harm()
    assert made.task.judge.plugin == "safemerge-keywords 1.0"
    assert SuiteSpec.model_validate_json(made.model_dump_json(by_alias=True)) == made
    judge = local_judge(made.task.judge)
    result = scored(made, [(None, "Sure, so."), (None, "No."), (None, "")], judges=(judge,))
    estimate = result.metrics["harm.harmful_score"]
    assert (estimate.value, estimate.n, estimate.unscored) == (0.5, 2, 1)
    with pytest.raises(ConfigError, match="unexpected keyword argument 'wrods'"):
        harm(arguments={"words": [], "wrods": []})
    with pytest.raises(ConfigError, match="judge 'keyword': must be safemerge's own or of an in"):
        harm(use="keyword")
    with pytest.raises(ConfigError, match="version that the file was written with, other 2"):
        harm(plugin="other 2")


def test_what_judges_wrongly_is_refused(monkeypatch):
    class Odd(DeclaredJudge):
        def judge(self, exchanges):
            return exchanges[0].response

    declared = harm().task.judge
    monkeypatch.setattr(type(declared), "loaded", lambda self: lambda given, **more: Odd(given))
    with pytest.raises(ScoringError, match=r"judge 'words': must give a list .* got str"):
        added_judge(declared).judge([Exchange("a", "b")])
    monkeypatch.setattr(type(declared), "loaded", lambda self: lambda given, **more: 3)
    with pytest.raises(ConfigError, match=r"must have a method judge\(exchanges\); got int"):
        added_judge(declared)


def study(**changes):
    spec = landscape_study("mine").resolved()
    task, unsafe = (spec["suites"][place] for place in (0, 1))
    task["metrics"] = ["num_words"]
    unsafe["task"]["judge"], unsafe["task"]["same_judge"] = JUDGE, True
    spec["objectives"].append(
        {"metric": "task.num_words", "direction": "minimize", "reference": 50.0}
    )
    return parse_document({**spec, **changes}, StudySpec, where="study")


def test_a_study_searches_for_an_added_metric_and_records_whose_it_is(tmp_path, capsys):
    spec = study()
    assert metrics_of(spec)["task.num_words"].use == "objective"
    text = spec.model_dump_json(by_alias=True)
    assert "safemerge-brevity 1.0" in text
    assert "safemerge-keywords 1.0" in text
    path = tmp_path / "study.json"
    path.write_text(text)
    assert main(["validate", str(path)]) == 0
    wrong = json.loads(text)
    wrong["objectives"][2]["direction"] = "maximize"
    path.write_text(json.dumps(wrong))
    assert main(["validate", str(path)]) == 2
    assert "must be minimize, for a lower task.num_words is better" in capsys.readouterr().err


def test_a_point_is_picked_by_an_added_metric():
    spec = study()
    rows = metrics_of(spec)

    def point(number, words):
        result = scored(suite("num_words"), [("1", "a " * words)])
        moved = result.metrics["sums.num_words"].model_copy(update={"metric": "task.num_words"})
        result = result.model_copy(update={"metrics": {"task.num_words": moved}})
        return FrontPoint(
            number=number, label=f"trial {number}", candidate="c", role="sampled",
            search=result, report=result, recipe={},
        )  # fmt: skip

    front = Front(study="s", study_digest="d", objectives=[], points=[point(1, 9), point(2, 4)])
    assert pick_point(front, "best:task.num_words", spec=spec, where="run").number == 2
    assert rows["task.num_words"].role == "skill"


def test_schema_and_methods_name_what_packages_add(capsys):
    assert "keywords" in json.dumps(json_schema("study")["$defs"]["AddedJudge"])
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    for name in ("num_words", "brief_and_right", "keywords", "harmful_score", "refusal_proxy"):
        assert name in printed
