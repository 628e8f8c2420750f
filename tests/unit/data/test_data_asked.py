import json

import pytest

from safemerge.config.document import parse_document
from safemerge.config.inputs import SCORING_VERSION, StudyInputs
from safemerge.config.suite import SuiteSpec
from safemerge.data.asked import asked_rows, rows_digests
from safemerge.data.suite import load_splits, load_suites
from safemerge.errors import DataError
from safemerge.testing.landscapes import landscape_study


def write(folder, *, report="report", count=4, words="question"):
    for name in ("search", report):
        rows = [{"prompt": f"{name} {words} {at}", "answer": "yes"} for at in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)


def suites(folder, **changes):
    def asked(name):
        path = str(folder / f"{name}.jsonl")
        return {"source": {"kind": "file", "path": path}, "label": "answer"}

    document = {
        "name": "q",
        "task": {"kind": "classification", "labels": ["yes", "no"]},
        "search": asked("search"),
        "report": asked("report"),
        "max_similarity": None,
        **changes,
    }
    return [parse_document(document, SuiteSpec, where="suite")]


def digests(folder, **changes):
    return rows_digests(asked_rows(load_splits(suites(folder, **changes))))


def test_rows_are_told_by_suite_and_split_with_id_and_digest(tmp_path):
    write(tmp_path)
    rows = asked_rows(load_splits(suites(tmp_path)))
    assert list(rows) == ["suites.q.search", "suites.q.report"]
    assert len(rows["suites.q.search"]) == 4
    identity, text = rows["suites.q.search"][0]
    assert identity.startswith("search.jsonl:")
    assert len(text) == 16


def test_a_file_written_another_way_asks_the_same(tmp_path):
    write(tmp_path)
    before = digests(tmp_path)
    path = tmp_path / "search.jsonl"
    path.write_text("".join(f"{line}\n\n" for line in reversed(path.read_text().splitlines())))
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"few_shot": {"rows": [{"prompt": "2 + 2?", "answer": "yes"}]}},
        {"few_shot": {"rows": [{"prompt": "2 + 3?", "answer": "yes"}]}},
        {"group": "answer"},
    ],
)
def test_worked_examples_and_groups_count(tmp_path, changes):
    write(tmp_path)
    assert digests(tmp_path, **changes) != digests(tmp_path)


def test_a_process_that_loads_other_rows_in_a_run_is_refused(tmp_path):
    write(tmp_path)
    found = suites(tmp_path)
    spec = landscape_study("asked").model_copy(update={"suites": found})
    load_suites(spec)
    rows = rows_digests(asked_rows(load_splits(found)))
    resolved = spec.model_copy(update={"inputs": StudyInputs(scoring=SCORING_VERSION, rows=rows)})
    load_suites(resolved)
    write(tmp_path, words="other words")
    load_suites(spec)
    with pytest.raises(DataError, match=r"suites\.q\.search: the rows .* began with; got others"):
        load_suites(resolved)
