"""What the report says about judges other than the refusal proxy."""

from dataclasses import replace

import pytest
import synthetic_run as synthetic

from safemerge.config.suite import Harm
from safemerge.records import Score
from safemerge.reports.metric import judge_notes
from safemerge.reports.run import load_run
from safemerge.reports.section_notes import limits_section

GUARD = {"kind": "guard", "family": "wildguard", "name": "guard", "path": "x"}
OTHER = {**GUARD, "name": "other"}
"""The same weights under another name."""


def with_task(spec, **fields):
    suites = [
        suite.model_copy(update={"task": Harm.model_validate({"kind": "harm", **fields})})
        if suite.task.kind == "harm"
        else suite
        for suite in spec.suites
    ]
    return spec.model_copy(update={"suites": suites})


@pytest.fixture
def run(published_folder):
    return load_run(published_folder)


def scored_both(spec):
    """What the notes say of judges that scored both splits, by judge."""
    return {
        note.title: sentence
        for note in judge_notes(spec)
        for sentence in note.sentences
        if "both the search and the report" in sentence
    }


def test_every_judge_is_named_and_one_for_both_splits_is_told():
    spec = synthetic.make_spec()
    fresh = with_task(spec, judge=GUARD, report_judges=[{**OTHER, "path": "y"}])
    assert {"guard", "other"} <= {note.title for note in judge_notes(fresh)}
    assert not {"guard", "other"} & set(scored_both(fresh))
    same = scored_both(with_task(spec, judge=GUARD, same_judge=True))
    assert same["guard"].startswith("It scored both the search and the report of suite unsafe: ")


def test_a_judge_of_both_splits_is_told_beside_fresh_ones_and_under_another_name():
    spec = synthetic.make_spec()
    beside = {**GUARD, "name": "fresh", "path": "y"}
    assert "guard" in scored_both(with_task(spec, judge=GUARD, report_judges=[beside, GUARD]))
    renamed = scored_both(with_task(spec, judge=GUARD, report_judges=[OTHER], same_judge=True))
    assert {"guard", "other"} <= set(renamed)


def test_the_refusal_proxy_as_the_only_judge_is_told_with_all_its_suites(run):
    spec = run.spec
    unsafe = [suite.name for suite in spec.suites if suite.task.kind == "harm"]
    benign = [suite.name for suite in spec.suites if suite.task.kind == "over_refusal"]
    (sentence,) = scored_both(spec).values()
    named = [name for name in (*unsafe, *benign) if f" {name}" in sentence]
    assert named == [*unsafe, *benign]
    assert sentence in limits_section(run)
    (only_benign,) = scored_both(with_task(spec, report_judges=[GUARD])).values()
    assert f"of suite {benign[0]}: " in only_benign


def judged(point):
    """The point with verdicts of two judges that disagree on every fifth answer."""
    scores = [
        Score(
            sample_id=score.sample_id,
            values={"harmful_score": float(index % 2)},
            verdicts={"guard": index % 2 == 1, "<other>": (index % 2 == 1) != (index % 5 == 0)},
        )
        for index, score in enumerate(point.report.scores["unsafe"])
    ]
    report = point.report.model_copy(update={"scores": {"unsafe": scores}})
    return point.model_copy(update={"report": report})


def test_the_report_has_a_table_of_agreement_where_several_judges_scored(run):
    assert "Agreement of the judges" not in limits_section(run)
    front = run.front.model_copy(
        update={"points": [judged(point) for point in run.front.points], "references": []}
    )
    text = limits_section(replace(run, front=front))
    assert "Agreement of the judges of suite unsafe" in text
    assert "guard and &lt;other&gt;" in text
    assert "<other>" not in text
    num_answers = 60 * len({point.report.candidate for point in front.points})
    assert f">{num_answers}<" in text


def test_answers_that_were_cut_are_counted_by_suite_and_split(run):
    assert "Answers that were cut" not in limits_section(run)
    point = run.front.points[0]
    report = point.report.model_copy(update={"cut": {"unsafe": 7}})
    front = run.front.model_copy(
        update={"points": [point.model_copy(update={"report": report})], "references": []}
    )
    text = limits_section(replace(run, front=front))
    assert "<h3>Answers that were cut</h3>" in text
    assert f">7 of {len(report.scores['unsafe'])}<" in text
