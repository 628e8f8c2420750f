import json
import os

import pytest

from safemerge.cache import BlobCache, cache_dir, read_entry, write_entry
from safemerge.errors import PreflightError


def test_cache_dir_follows_the_variable_and_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMERGE_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_dir() == tmp_path / "deep" / "cache"
    assert cache_dir().is_dir()


def test_cache_dir_without_variable_lies_in_the_home(tmp_path, monkeypatch):
    monkeypatch.delenv("SAFEMERGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "safemerge"


def test_a_file_in_the_place_of_the_cache_is_a_preflight_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAFEMERGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(PreflightError, match=r"file'.*File exists.*Set SAFEMERGE_CACHE"):
        cache_dir()


def test_a_read_only_cache_is_a_preflight_error(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PreflightError, match="no write permission"):
        cache_dir()


def test_an_entry_that_cannot_be_written_is_a_preflight_error_and_leaves_nothing():
    (cache_dir() / "kind").mkdir()
    (cache_dir() / "kind" / "key.json").mkdir()
    with pytest.raises(PreflightError, match="must be a folder that can be written"):
        write_entry("kind", "key", {})
    assert [path.name for path in (cache_dir() / "kind").iterdir()] == ["key.json"]


def test_entries_come_back_and_missing_or_damaged_ones_count_as_none():
    assert read_entry("kind", "key") is None
    write_entry("kind", "key", {"value": 1})
    assert read_entry("kind", "key") == {"value": 1}
    path = cache_dir() / "kind" / "key.json"
    for damaged in ("{", json.dumps([1]), "\xff"):
        path.write_bytes(damaged.encode("latin-1"))
        assert read_entry("kind", "key") is None
    assert [entry.name for entry in path.parent.iterdir()] == ["key.json"]


def test_blobs_are_read_by_other_caches_of_the_kind():
    BlobCache("kind", 8000).put("key", b"content")
    assert BlobCache("kind", 8000).get("key") == b"content"
    assert BlobCache("other", 8000).get("key") is None
    assert BlobCache("kind", 8000).get("no-key") is None


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_blob_counts_as_missing_and_goes(damage):
    cache = BlobCache("kind", 8000)
    cache.put("key", b"content")
    path = cache_dir() / "kind" / "key.blob"
    path.write_bytes(path.read_bytes()[:-1] + b"T" if damage is None else damage)
    assert cache.get("key") is None
    assert not path.exists()
    cache.put("key", b"anew")
    assert cache.get("key") == b"anew"


def blobs(kind="kind"):
    return {path.stem: path.stat() for path in (cache_dir() / kind).iterdir()}


def test_blobs_of_others_go_longest_unused_first():
    old = BlobCache("kind", 8000)
    for at in range(8):
        old.put(f"old{at}", bytes(900))
        os.utime(cache_dir() / "kind" / f"old{at}.blob", ns=(at, at))
    new = BlobCache("kind", 8000)
    assert new.get("old0") == bytes(900)
    for at in range(3):
        new.put(f"new{at}", bytes(900))
    assert set(blobs()) == {"old0", *(f"old{at}" for at in range(4, 8)), "new0", "new1", "new2"}
    assert sum(status.st_size for status in blobs().values()) <= 8000


def test_a_user_that_needs_more_than_there_is_keeps_what_came_first():
    keys = [f"key{at}" for at in range(40)]

    def walk():
        """Read every entry in order, and keep what is missing, as candidates do."""
        cache = BlobCache("kind", 8000)
        found = [key for key in keys if cache.get(key) is not None or cache.put(key, bytes(900))]
        return found, {key: (status.st_ino, status.st_size) for key, status in blobs().items()}

    assert walk()[0] == []
    kept = blobs()
    assert 7000 < sum(status.st_size for status in kept.values()) <= 8000
    found, after = walk()
    assert found == keys[: len(kept)]
    assert after == {key: (status.st_ino, status.st_size) for key, status in kept.items()}


def test_one_user_does_not_drop_its_own_entries():
    cache = BlobCache("kind", 8000)
    for at in range(40):
        cache.put(f"key{at}", bytes(900))
    assert cache.get("key0") == bytes(900)
    assert cache.get("key39") is None


def test_a_blob_too_large_for_the_cache_is_not_kept():
    cache = BlobCache("kind", 8000)
    cache.put("key", bytes(1001))
    assert cache.get("key") is None


def test_a_cache_that_cannot_be_written_keeps_nothing_and_says_nothing(monkeypatch):
    cache = BlobCache("kind", 8000)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safemerge.cache.tempfile.mkstemp", full)
    cache.put("key", b"content")
    assert cache.get("key") is None
