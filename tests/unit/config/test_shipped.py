import re
import tomllib
from pathlib import Path

import pytest

import safemerge
from safemerge.config.shipped import shipped_file, shipped_studies
from safemerge.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def test_the_shipped_studies_are_those_of_the_repository_and_no_copies():
    assert {path.stem for path in (ROOT / "search_spaces").glob("*.yaml")} == set(
        shipped_studies()
    )
    assert shipped_file("demo.yaml") == ROOT / "search_spaces" / "demo.yaml"
    assert (ROOT / "safemerge" / "search_spaces").is_symlink()


def test_an_unknown_shipped_file_is_refused_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"dem\.yaml: no such shipped file\. Did you mean 'demo'"
    ):
        shipped_file("dem.yaml")


def test_the_version_stands_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited.group(1) == safemerge.__version__
