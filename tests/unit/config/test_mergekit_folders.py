import pytest

from safemerge.config.mergekit_file import locate_models
from safemerge.errors import ConfigError


@pytest.fixture
def places(tmp_path):
    for folder in ("file/base", "here/base", "here/math"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def located(places, base, expert):
    document = {"base": {"path": base}, "experts": [{"path": expert}]}
    notes = list(locate_models(document, places / "file" / "m.yml", places / "here"))
    return document["base"]["path"], document["experts"][0]["path"], notes


def test_the_files_folder_comes_before_the_current_one_and_only_a_choice_is_told(places):
    base, expert, notes = located(places, "base", "math")
    assert base == str(places / "file" / "base")
    assert expert == str(places / "here" / "math")
    assert notes == [
        f"model 'base' is beside m.yml and in the current folder too; taking {base}",
    ]


def test_absolute_folders_stay(places):
    whole = str(places / "here" / "math")
    assert located(places, whole, whole) == (whole, whole, [])


def test_what_is_no_folder_and_looks_like_a_hub_id_is_one(places):
    document = {
        "base": {"path": "base"},
        "experts": [
            {"path": "base", "on": {"path": "org/base-7b"}},
            {"stack": [{"model": {"path": "org/math-7b"}}, {"model": {"path": "org/math-7b"}}]},
        ],
    }
    notes = list(locate_models(document, places / "file" / "m.yml", places / "file"))
    assert document["experts"][1]["stack"][1]["model"] == {"hub": "org/math-7b"}
    assert document["experts"][0]["on"] == {"hub": "org/base-7b"}
    assert notes == [
        f"model 'org/{name}-7b' is no folder here; taking it from the hub"
        for name in ("base", "math")
    ]


def test_every_folder_that_is_missing_is_named(places):
    with pytest.raises(ConfigError, match=r"(?s)'gone'.*'lost'"):
        located(places, "gone", "lost")


@pytest.mark.parametrize("path", ["code", "/no/such", "~nobody-at-all/x", "a\0b", "n" * 5000])
def test_a_folder_that_is_nowhere_is_refused(places, path):
    with pytest.raises(ConfigError, match=r"must be a folder, absolute or from .*Check the path"):
        located(places, "base", path)
