import hashlib
import os
import shutil

import pytest

from safemerge.errors import CheckpointChangedError, CheckpointError
from safemerge.weights.watched_file import FileIdentity, WatchedFile, content_digest


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"0123456789")
    return path


def keep_times(path, change):
    """Change a file and set its modification time back, as ``cp -p`` and ``rsync -t`` do."""
    status = path.stat()
    change(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit(path):
    with path.open("r+b") as stream:
        stream.write(b"9")


def replace(path):
    other = path.with_name("other")
    other.write_bytes(b"9123456789")
    other.replace(path)


WAYS = {
    "edited in place": (edit, "other bytes of the same size"),
    "edited, times kept": (lambda path: keep_times(path, edit), "same size and modification time"),
    "replaced": (replace, "another file of the same size in its place"),
    "replaced, times kept": (lambda path: keep_times(path, replace), "another file"),
    "cut": (lambda path: os.truncate(path, 4), "got 4 bytes, was 10"),
    "gone": (lambda path: path.unlink(), "No such file"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_change_is_noticed_and_named(file, way):
    change, words = WAYS[way]
    content_digest(file)
    watched = WatchedFile(file)
    watched.check_unchanged()
    change(file)
    for _ in range(2):
        with pytest.raises(CheckpointChangedError, match=rf"weights: must stay .*{words}"):
            watched.check_unchanged()


@pytest.mark.parametrize("way", [way for way in WAYS if way != "gone"])
def test_every_way_of_change_gives_another_digest(file, way):
    before = content_digest(file)
    WAYS[way][0](file)
    assert content_digest(file) != before


def test_a_file_that_came_back_stays_changed(file, tmp_path):
    watched = WatchedFile(file)
    file.rename(tmp_path / "away")
    with pytest.raises(CheckpointChangedError):
        watched.check_unchanged()
    (tmp_path / "away").rename(file)
    with pytest.raises(CheckpointChangedError):
        watched.check_unchanged()


def test_other_permissions_and_links_change_nothing(file, tmp_path):
    content_digest(file)
    watched = WatchedFile(file)
    file.chmod(0o640)
    os.link(file, tmp_path / "link")
    watched.check_unchanged()
    assert watched.identity == FileIdentity.of(file.stat())


def test_a_file_whose_bytes_are_not_known_must_keep_its_times(file):
    watched = WatchedFile(file)
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:
        file.chmod(0o640)
    with pytest.raises(CheckpointChangedError):
        watched.check_unchanged()


def test_a_file_in_a_moved_folder_is_not_digested_again(file, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    file = file.rename(tmp_path / "here" / "weights")
    before = content_digest(file)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.setattr("hashlib.file_digest", None)
    assert content_digest(tmp_path / "there" / "weights") == before


def test_a_file_that_changes_while_it_is_digested_is_refused(file, monkeypatch):
    whole = hashlib.file_digest

    def digest(stream, kind):
        os.truncate(file, 3)
        return whole(stream, kind)

    monkeypatch.setattr("hashlib.file_digest", digest)
    with pytest.raises(CheckpointChangedError, match="got 3 bytes, was 10"):
        content_digest(file)


@pytest.mark.parametrize("kind", ["missing", "a folder", "a broken link"])
def test_what_is_no_file_has_no_digest(tmp_path, kind):
    path = tmp_path / "x"
    if kind == "a folder":
        path.mkdir()
    if kind == "a broken link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="x: must be a readable file; got: "):
        content_digest(path)


def test_a_copy_has_the_same_digest(file, tmp_path):
    assert content_digest(shutil.copy2(file, tmp_path / "copy")) == content_digest(file)
