import json
import os

import pytest

from safemerge import files
from safemerge.chained_lines import ChainedLines
from safemerge.errors import ChangedRunError, UserError


def is_whole(line):
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def opened(folder):
    return ChainedLines(folder / "trials.jsonl", is_whole=is_whole)


def line(number):
    return json.dumps({"number": number, "text": "ä" * number}).encode()


@pytest.fixture
def lines(tmp_path):
    """Five lines, written by two processes one after the other."""
    for start, stop in ((0, 3), (3, 5)):
        writer = opened(tmp_path)
        for number in range(start, stop):
            writer.append(line(number))
    return opened(tmp_path)


def rewrite(lines, change):
    found = lines.path.read_bytes().splitlines(keepends=True)
    lines.path.write_bytes(b"".join(change(found)))


def test_lines_that_were_appended_are_read_and_have_an_entry_each(lines):
    assert lines.read() == [line(number) for number in range(5)]
    assert lines.digest_path.name == "trials.digest"
    ends = [int(entry.split()[0]) for entry in lines.digest_path.read_text().splitlines()]
    assert ends[-1] == lines.path.stat().st_size
    assert len(ends) == 5


def test_a_file_that_is_not_there_has_no_lines(tmp_path):
    assert opened(tmp_path).read() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[:3], r"hold the 5 lines that were written; got 3, 2 of them gone\."),
        (lambda found: found[2:], "got 3, 2 of them gone, line 1 the first that differs"),
        (lambda found: [], "got 0, 5 of them gone"),
        (lambda found: [*found[:2], found[3]], "got 3, 2 of them gone, line 3 the first"),
        (lambda found: [found[0], found[2], found[1], *found[3:]], "line 2: must be as it was"),
        (lambda found: [*found[:4], found[4].replace(b"4", b"9", 1)], "line 5: must be as it was"),
        (lambda found: [*found, b"{}\n", b"{}\n"], "got 7, of which 2 were added by something"),
        (lambda found: [b"{}\n", *found], r"line 1: must be as it was .*5 lines.*6 found"),
    ],
    ids=["end", "start", "all", "middle", "swapped", "edited", "added", "put before"],
)
def test_lines_that_are_gone_edited_or_foreign_are_noticed_and_can_be_accepted(
    lines, change, message
):
    rewrite(lines, change)
    there = lines.path.read_bytes()
    with pytest.raises(ChangedRunError, match=message) as caught:
        lines.read()
    assert isinstance(caught.value, UserError)
    assert "safemerge report RUN_DIR --accept-trials" in str(caught.value)
    before = lines.digest_path.read_bytes()
    kept = lines.accept()
    assert kept.read_bytes() == before
    assert kept.name == "trials.digest.old-1"
    assert lines.path.read_bytes() == there, "nothing is deleted"
    assert lines.read() == there.splitlines()
    lines.append(line(7))
    assert opened(lines.path.parent).read() == [*there.splitlines(), line(7)]


def test_a_deleted_file_is_noticed(lines):
    lines.path.unlink()
    with pytest.raises(ChangedRunError, match="got 0, 5 of them gone"):
        lines.read()
    assert lines.accept() is not None
    assert lines.read() == []


def test_there_is_nothing_to_accept_where_all_is_as_written(lines):
    assert lines.accept() is None
    assert lines.read() == [line(number) for number in range(5)]


def test_lines_of_an_earlier_version_are_taken_in_by_the_next_append(lines):
    lines.digest_path.unlink()
    assert len(lines.read()) == 5
    lines.append(line(5))
    rewrite(lines, lambda found: found[1:])
    with pytest.raises(ChangedRunError, match="line 1 the first that differs"):
        lines.read()


def test_a_file_that_was_shortened_under_a_running_driver_is_not_appended_to(lines):
    rewrite(lines, lambda found: found[:4])
    there = lines.path.read_bytes()
    with pytest.raises(ChangedRunError, match=r"must hold \d+ bytes in 5 lines; got \d+ bytes"):
        lines.append(line(5))
    assert lines.path.read_bytes() == there


def test_a_file_that_something_else_added_lines_to_is_not_appended_to(lines):
    rewrite(lines, lambda found: [*found, b"{}\n", b"{}\n"])
    there = lines.path.read_bytes()
    with pytest.raises(ChangedRunError, match="got 7, of which 2 were added by something else"):
        lines.append(line(5))
    assert lines.path.read_bytes() == there


def test_a_digest_file_that_holds_something_else_is_noticed(lines):
    lines.digest_path.write_text("x" * len(lines.digest_path.read_bytes()))
    with pytest.raises(ChangedRunError, match="line 1: must be as it was written"):
        lines.read()
    with pytest.raises(ChangedRunError, match=r"trials\.digest: must hold the digests"):
        lines.append(line(5))


class Killed(BaseException):
    """As SIGKILL: nothing in between may handle it."""


@pytest.mark.parametrize("left", [0, 1, 20, 10_000], ids=lambda left: f"{left} bytes written")
@pytest.mark.parametrize("place", [0, 1], ids=["line", "entry"])
def test_a_process_killed_at_any_write_leaves_lines_that_go_on(tmp_path, monkeypatch, place, left):
    first = opened(tmp_path)
    first.append(line(0))
    writes = []

    def struck(handle, payload):
        writes.append(payload)
        if len(writes) == place + 1:
            os.write(handle, payload[:left])
            raise Killed
        os.write(handle, payload)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", struck)
        patch.setattr("safemerge.chained_lines.write_all", struck)
        with pytest.raises(Killed):
            first.append(line(1))
    second = opened(tmp_path)
    known = second.read()
    assert known in ([line(0)], [line(0), line(1)])
    assert (line(1) in known) == (place == 1 or left == 10_000)
    torn = second.append(line(2))
    assert (torn is not None) == (place == 0 and left in (1, 20))
    expected = [*known, line(2)]
    assert opened(tmp_path).read() == expected
    assert len(second.digest_path.read_text().splitlines()) == len(expected)


@pytest.mark.parametrize("place", [0, 1], ids=["line", "entry"])
def test_a_full_disk_leaves_both_files_as_they_were(lines, monkeypatch, place):
    before = (lines.path.read_bytes(), lines.digest_path.read_bytes())
    writes = []

    def full(handle, payload):
        writes.append(payload)
        os.write(handle, payload if len(writes) <= place else payload[:20])
        if len(writes) == place + 1:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", full)
        patch.setattr("safemerge.chained_lines.write_all", full)
        with pytest.raises(OSError, match="No space left"):
            lines.append(line(5))
    assert (lines.path.read_bytes(), lines.digest_path.read_bytes()) == before
    lines.append(line(5))
    assert len(lines.read()) == 6


def test_an_append_reads_no_earlier_line(lines, monkeypatch):
    read = []
    real = os.pread
    monkeypatch.setattr(
        os, "pread", lambda handle, count, at: read.append(at) or real(handle, count, at)
    )
    size = lines.path.stat().st_size
    lines.append(line(5))
    assert min(read) >= size - 1
