import json

import pytest

from safemerge.config.suite import SuiteSpec
from safemerge.data.suite import load_suite
from safemerge.errors import DataError

ROWS = [
    {"question": "Which is warm?", "choices": {"text": [" ice", "fire "]}, "key": "B", "no": 1},
    {"question": "Is it a bird?", "choices": {"text": ["owl", "cow", "eel"]}, "key": "A", "no": 0},
]  # fmt: skip
GOLD = {"A": 0, "B": 1, "C": 2}


@pytest.fixture
def load(tmp_path):
    """Load a choice suite over rows, with changes to its task."""

    def load(rows, *, label="key", **task):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        source = {"kind": "file", "path": str(path)}
        data = {"source": source, "prompt": "{question}", "label": label}
        document = {
            "name": "pick",
            "task": {"kind": "choice", "endings": "{choices[text]}", "gold": GOLD, **task},
            "search": data,
            "report": data,
        }
        suite = load_suite(SuiteSpec.model_validate(document), "search")
        return {sample.prompt: sample for sample in suite.samples}

    return load


def test_a_field_that_holds_a_list_gives_each_question_its_own_endings(load):
    samples = load(ROWS)
    assert samples["Which is warm?"].endings == ("ice", "fire")
    assert samples["Is it a bird?"].endings == ("owl", "cow", "eel")
    assert [samples[row["question"]].label for row in ROWS] == ["1", "0"]


def test_templates_name_an_ending_each_and_the_gold_column_may_hold_the_position(load):
    templates = ["It is {choices[text][0]}.", "{choices[text][1]}"]
    samples = load(ROWS, label="no", endings=templates, gold=None)
    assert samples["Is it a bird?"].endings == ("It is owl.", "cow")
    assert samples["Which is warm?"].label == "1"


@pytest.mark.parametrize(
    ("row", "task", "words"),
    [
        ({"key": "D"}, {}, r"pick', search: the gold column must tell one of 2 endings; got 'D'"),
        ({"key": "C"}, {}, r"must tell one of 2 endings; got 'C' for rows\.jsonl:"),
        ({"no": "x"}, {"label": "no", "gold": None}, "one of 2 endings; got 'x'"),
        ({"no": "-1"}, {"label": "no", "gold": None}, "one of 2 endings; got '-1'"),
        (
            {"choices": {"text": ["alone"]}},
            {},
            r"endings: \{choices\[text\]\} must hold a l",
        ),
        ({"choices": {"text": ["a", " "]}}, {}, "must hold a list of two or more texts"),
        ({"choices": {"text": "ab"}}, {}, "must hold a list of two or more texts; got 'ab'"),
        ({}, {"endings": "say {choices[text]}"}, "one field that holds a list; got 'say"),
        ({}, {"endings": "plain"}, "one field that holds a list; got 'plain'"),
        ({}, {"endings": "{options}"}, "must have the named column; got 'options'"),
        ({}, {"endings": ["{choices[text][5]}", "b"], "gold": None}, "must fit the row's columns"),
    ],
)
def test_rows_that_make_no_question_are_refused_by_name(load, row, task, words):
    with pytest.raises(DataError, match=words):
        load([{**ROWS[0], **row}], **task)
