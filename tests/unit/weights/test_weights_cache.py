import json
import os

import pytest

from safemerge.cache import cache_dir, read_entry, write_entry
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
