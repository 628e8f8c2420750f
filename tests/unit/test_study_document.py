import json

import pytest

from safemerge.config.inputs import SCORING_VERSION, StudyInputs, input_changes
from safemerge.data.asked import rows_digests
from safemerge.errors import ChangedRunError
from safemerge.store import RunStore
from safemerge.study_document import new_document
from safemerge.testing.landscapes import landscape_study

PLACE = "suites.harm.search"


def asked(*words, start=0):
    return {PLACE: [(f"harm.jsonl:{start + at}", word) for at, word in enumerate(words)]}


def with_rows(rows, **more):
    inputs = StudyInputs(scoring=SCORING_VERSION, rows=rows_digests(rows), **more)
    return landscape_study("asked").model_copy(update={"inputs": inputs})


def test_inputs_stand_beside_the_study_and_not_in_it():
    document = new_document(with_rows(asked("a")))
    assert document.config == landscape_study("asked")
    assert document.inputs.rows == rows_digests(asked("a"))
    assert "inputs" not in document.resolved()["config"]
    assert new_document(with_rows(asked("b"))).digest != document.digest


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (asked("a", "b"), r"2 rows instead of 3: 1 gone, first harm\.jsonl:2"),
        (asked("a", "b", "c", "d"), r"4 rows instead of 3: 1 new, first harm\.jsonl:3"),
        (asked("a", "x", "c"), r"3 rows instead of 3: 1 in other words, first harm\.jsonl:1"),
        (asked("b", "c", "d", start=1), "1 gone, first .*:0; 1 new, first .*:3 "),
        ({PLACE: list(reversed(asked("a", "b", "c")[PLACE]))}, "another order"),
    ],
    ids=["gone", "new", "reworded", "all", "order"],
)
def test_changed_rows_are_named_by_suite_split_and_first_row(tmp_path, now, told):
    before = asked("a", "b", "c")
    store = RunStore(tmp_path / "run").create(with_rows(before), rows=before)
    store.check_same_study(with_rows(before), rows=before)
    with pytest.raises(ChangedRunError, match=told) as caught:
        store.check_same_study(with_rows(now), rows=now)
    assert f"({PLACE})" in str(caught.value)


def test_rows_are_compared_although_the_list_of_them_is_gone(tmp_path):
    before = asked("a", "b")
    store = RunStore(tmp_path / "run").create(with_rows(before), rows=before)
    store.asked_path.write_text("{")
    with pytest.raises(ChangedRunError, match=rf"got other rows \({PLACE}\)"):
        store.check_same_study(with_rows(asked("a")), rows=asked("a"))


def test_a_data_file_counts_by_its_rows_where_both_sides_know_them():
    one = StudyInputs(scoring=1, files={PLACE: "f1", f"{PLACE}.few_shot": "s1"}, rows={PLACE: "r"})
    two = one.model_copy(update={"files": {PLACE: "f2", f"{PLACE}.few_shot": "s2"}})
    assert input_changes(one, two) == []
    unread = two.model_copy(update={"rows": {}})
    assert [item.kind for item in input_changes(one, unread)] == ["files", "files"]


@pytest.mark.parametrize(
    ("kind", "place", "told"),
    [
        ("tasks", "suites.arc.task", "another definition of the lm_eval task"),
        ("judges", "guard", "other weights of the judge (guard)"),
        ("models", "base.tokenizer", "another tokenizer (base)"),
    ],
)
def test_what_only_one_side_knows_is_not_compared(kind, place, told):
    one, two = (StudyInputs(scoring=1, **{kind: {place: value}}) for value in "ab")
    (change,) = input_changes(one, two)
    assert told in str(change)
    assert input_changes(one, StudyInputs(scoring=1)) == []
    assert input_changes(StudyInputs(scoring=1), two) == []


def test_a_version_of_scoring_is_always_compared(tmp_path):
    spec = with_rows(asked("a"))
    store = RunStore(tmp_path / "run").create(spec)
    document = json.loads(store.study_path.read_text())
    document["inputs"]["scoring"] = SCORING_VERSION + 1
    store.study_path.write_text(json.dumps(document))
    with pytest.raises(ChangedRunError, match="another version of scoring"):
        store.check_same_study(spec)
