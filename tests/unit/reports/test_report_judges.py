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


def test_every_judge_is_named_and_one_for_both_splits_is_told():
    spec = synthetic.make_spec()
    notes = judge_notes(with_task(spec, judge=GUARD, report_judges=[OTHER]))
    assert {"guard", "other"} <= {note.title for note in notes}
    assert not any("both the search and the report" in " ".join(n.sentences) for n in notes)
    same = judge_notes(with_task(spec, judge=GUARD, same_judge=True))
    (note,) = [note for note in same if note.title == "guard"]
    assert "It scored both the search and the report of suite unsafe" in " ".join(note.sentences)


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
