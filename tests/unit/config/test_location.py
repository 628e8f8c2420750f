from pathlib import Path

import pytest

from safemerge.config.location import located_path
from safemerge.errors import ConfigError


def test_paths_are_absolute_and_their_links_resolved(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "link").symlink_to("models")
    assert located_path("a/../b", tmp_path) == str(tmp_path / "b")
    assert located_path("link/x", tmp_path) == str(tmp_path / "models" / "x")
    assert located_path("~/m", Path("elsewhere")) == str(tmp_path / "m")
    assert located_path(str(tmp_path), Path("elsewhere")) == str(tmp_path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("~nobody-of-this-name/m", "home directory"),
        ("circle/m", "[Ll]oop"),
        ("a\0b", "null byte"),
        ("x" * 300, "File name too long"),
        ("x/" * 3000, "File name too long"),
    ],
)
def test_what_no_file_can_be_named_is_refused(given, words, tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(ConfigError, match=f"must be one that a file can have; got: .*{words}"):
        located_path(given, tmp_path)
