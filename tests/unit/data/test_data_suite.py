import json

import pytest

from safemerge.config.suite import Classification, Harm, SuiteSpec
from safemerge.data.sample import Sample
from safemerge.data.suite import LoadedSuite, check_disjoint, load_suite, load_suites
from safemerge.errors import DataError
from safemerge.testing.landscapes import landscape_study


def loaded(name, split, *samples):
    task = Harm(kind="harm")
    return LoadedSuite(name, task, split, tuple(Sample(key, text) for key, text in samples))


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return {"kind": "file", "path": str(path)}

    return write


def suite(search, report, **changes):
    task = {"kind": "classification", "labels": ["yes", "no"]}
    fields = {"name": "mood", "task": task, **changes}
    fields["search"] = {"source": search, "label": "label"}
    fields["report"] = {"source": report, "label": "label"}
    return SuiteSpec.model_validate(fields)


def test_disjoint_splits_pass():
    search = [loaded("a", "search", ("s:1", "one")), loaded("b", "search", ("s:2", "two"))]
    check_disjoint(search, [loaded("a", "report", ("s:3", "three"), ("s:4", "four"))])


def test_a_shared_id_is_refused_and_named():
    search = [loaded("a", "search", ("s:1", "one"))]
    report = [loaded("b", "report", ("s:0", "zero"), ("s:1", "quite another text"))]
    words = r"suites: search and report split must not share prompts; got 1 shared, e\.g\. s:1 \(b"
    with pytest.raises(DataError, match=words):
        check_disjoint(search, report)


def test_a_shared_text_is_refused_whatever_its_punctuation_case_and_suite():
    search = [loaded("a", "search", ("s:1", "How do I kill a process?"))]
    report = [loaded("b", "report", ("r:9", "how do i KILL   a process"))]
    with pytest.raises(DataError, match=r"got 1 shared, e\.g\. r:9 \(b\)"):
        check_disjoint(search, report)


def test_of_many_shared_prompts_three_are_named():
    many = [(f"s:{index}", f"text {index}") for index in range(5)]
    with pytest.raises(
        DataError, match=r"got 5 shared, e\.g\. s:0 \(a\), s:1 \(a\), s:2 \(a\)\. "
    ):
        check_disjoint([loaded("a", "search", *many)], [loaded("a", "report", *many)])


def test_prompts_shared_within_one_split_are_allowed():
    one, other = loaded("a", "search", ("s:1", "x")), loaded("b", "search", ("s:1", "x"))
    check_disjoint([one, other], [loaded("a", "report", ("r:1", "y"))])


def test_a_suite_has_its_task_split_and_samples(write):
    source = write("rows.jsonl", [{"prompt": "fine?", "label": "Yes"}])
    made = load_suite(suite(source, source), "report")
    assert (made.name, made.split) == ("mood", "report")
    assert isinstance(made.task, Classification)
    (sample,) = made.samples
    assert (sample.prompt, sample.label, sample.system) == ("fine?", "Yes", None)


def test_a_gold_label_that_is_not_declared_is_refused(write):
    source = write("rows.jsonl", [{"prompt": "fine?", "label": "maybe"}])
    words = (
        r"suite 'mood', search: gold labels must be among yes, no; got 'maybe' for rows\.jsonl:"
    )
    with pytest.raises(DataError, match=words):
        load_suite(suite(source, source), "search")


def study(suites):
    spec = landscape_study()
    return spec.model_copy(update={"suites": suites})


def test_a_studys_suites_are_loaded_for_both_splits(write):
    search = write("s.jsonl", [{"prompt": "in?", "label": "yes"}])
    report = write("r.jsonl", [{"prompt": "out?", "label": "no"}])
    splits = load_suites(study([suite(search, report)]))
    assert {split: made[0].samples[0].prompt for split, made in splits.items()} == {
        "search": "in?",
        "report": "out?",
    }


def test_a_study_whose_splits_overlap_is_refused(write):
    source = write("s.jsonl", [{"prompt": "in?", "label": "yes"}])
    with pytest.raises(DataError, match=r"got 1 shared, e\.g\. s\.jsonl:[0-9a-f]{12} \(mood\)"):
        load_suites(study([suite(source, source)]))
