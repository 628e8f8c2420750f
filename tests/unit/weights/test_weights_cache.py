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


def test_blobs_longest_unused_go_first():
    cache = BlobCache("kind", 8000)
    folder = cache_dir() / "kind"
    for at in range(40):
        cache.put(f"key{at}", bytes(900))
        os.utime(folder / f"key{at}.blob", ns=(at, at))
        if at > 3:
            assert cache.get("key3") == bytes(900)
            os.utime(folder / "key3.blob", ns=(at, at))
    names = {path.stem for path in folder.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 9000
    assert {"key3", "key39"} <= names
    assert "key4" not in names


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
