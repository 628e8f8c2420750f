import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import BaseModel

from safemerge import files
from safemerge.errors import PreflightError, StudyError


def never(line):
    return False


def always(line):
    return True


def test_a_replaced_file_holds_the_new_content_and_no_leftovers(tmp_path):
    path = tmp_path / "front.json"
    files.replace_file(path, "old")
    files.replace_file(path, b"new \xc3\xa9")
    assert path.read_text(encoding="utf-8") == "new é"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_replacement_leaves_the_old_file_and_no_leftovers(tmp_path, monkeypatch):
    path = tmp_path / "front.json"
    files.replace_file(path, "old")

    def full(handle, payload):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    order = []
    real_sync, real_replace = os.fsync, files.Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("sync") or real_sync(handle))
    monkeypatch.setattr(
        files.Path,
        "replace",
        lambda self, target: order.append("rename") or real_replace(self, target),
    )
    files.replace_file(tmp_path / "study.json", "{}")
    assert order == ["sync", "rename", "sync"]


def test_lines_are_appended_and_read_back(tmp_path):
    path = tmp_path / "trials.jsonl"
    assert files.read_lines(path) == []
    for line in (b"one", b"two"):
        assert files.append_line(path, line, is_whole=never) is None
    assert files.read_lines(path) == [b"one", b"two"]


def test_an_unfinished_last_line_is_not_read(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b"one\ntw")
    assert files.read_lines(path) == [b"one"]


def test_a_torn_line_is_moved_aside_and_described(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b"one\ntw")
    torn = files.restore_last_line(path, is_whole=never)
    assert torn == (2, 2, tmp_path / "trials.jsonl.torn")
    assert path.read_bytes() == b"one\n"
    assert torn.moved_to.read_bytes() == b"tw\n"


def test_torn_lines_pile_up_rather_than_replace_each_other(tmp_path):
    path = tmp_path / "trials.jsonl"
    for text in (b"first", b"second"):
        path.write_bytes(text)
        files.restore_last_line(path, is_whole=never)
    assert (tmp_path / "trials.jsonl.torn").read_bytes() == b"first\nsecond\n"


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b"one\ntwo")
    assert files.restore_last_line(path, is_whole=always) is None
    assert files.read_lines(path) == [b"one", b"two"]


@pytest.mark.parametrize("content", [None, b"", b"one\n"])
def test_a_file_without_a_torn_line_is_left_alone(tmp_path, content):
    path = tmp_path / "trials.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert files.restore_last_line(path, is_whole=never) is None
    assert (path.read_bytes() if path.exists() else None) == content


def test_appending_after_a_torn_line_moves_it_aside_first(tmp_path):
    path = tmp_path / "trials.jsonl"
    path.write_bytes(b"one\ntw")
    torn = files.append_line(path, b"three", is_whole=never)
    assert torn.num_bytes == 2
    assert files.read_lines(path) == [b"one", b"three"]


def test_an_append_that_fails_half_way_is_cut_off_again(tmp_path, monkeypatch):
    path = tmp_path / "trials.jsonl"
    files.append_line(path, b"one", is_whole=never)

    def half(handle, payload):
        os.write(handle, payload[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "write_all", half)
    with pytest.raises(OSError, match="No space"):
        files.append_line(path, b"two", is_whole=never)
    assert path.read_bytes() == b"one\n"


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, view: real(handle, view[:3]))
    files.replace_file(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, PreflightError, r"the disk is full; got \d+ MiB free"),
        (errno.EDQUOT, PreflightError, r"the disk is full"),
        (errno.EROFS, PreflightError, "cannot be written; got Read-only file system"),
        (errno.EACCES, PreflightError, "cannot be written; got Permission denied"),
        (errno.ENOTDIR, PreflightError, "must be a folder; got a file at x"),
        (errno.EEXIST, PreflightError, "must be a folder; got a file at x"),
        (errno.ENOENT, StudyError, "no such folder"),
    ],
)
def test_disk_trouble_is_told_to_the_user_with_the_folder(tmp_path, code, kind, message):
    with pytest.raises(kind, match=message) as caught, files.disk_errors(tmp_path):
        raise OSError(code, os.strerror(code), "x")
    assert str(tmp_path) in str(caught.value)


def test_other_system_errors_pass_through(tmp_path):
    with pytest.raises(OSError, match="Input/output"), files.disk_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")


# --- records as JSON --------------------------------------------------------------------


class Kept(BaseModel):
    number: int


def test_a_stored_record_is_read_back_or_its_damage_is_named():
    assert files.parse_stored('{"number": 3}', Kept, where="x.json") == Kept(number=3)
    with pytest.raises(StudyError, match=r"x\.json: damaged at number; got .*Restore the file"):
        files.parse_stored('{"number": "many"}', Kept, where="x.json")


@pytest.mark.parametrize(("line", "whole"), [(b'{"number": 3}', True), (b'{"numb', False)])
def test_half_a_record_is_no_record(line, whole):
    assert files.is_stored(line, Kept) is whole


def test_of_several_writers_of_a_new_file_one_succeeds_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "0001.json"
    contents = [bytes([65 + k]) * 99_999 for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda content: files.create_file(path, content), contents))
    assert sum(created) == 1
    assert path.read_bytes() == contents[created.index(True)]
    assert list(tmp_path.iterdir()) == [path]
