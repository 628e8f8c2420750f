import json

import pytest
import yaml
from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.document import load_document, parse_document, read_yaml
from safemerge.errors import ConfigError


class Inner(StrictModel):
    rate: float = 0.5
    steps: int = 1


class Outer(StrictModel):
    name: str = "x"
    inner: Inner = Inner()
    members: list[Inner] = Field(default_factory=list)
    flags: dict[str, bool] = Field(default_factory=dict)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "file.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "1.e-4", ".1e-3", "+1e-4"])
def test_a_number_with_an_exponent_is_a_number(write, text):
    assert read_yaml(write(f"rate: {text}")) == {"rate": 1e-4}


@pytest.mark.parametrize("text", ["'1e-4'", "e4", "1e", "1e4x", "4-1"])
def test_what_only_looks_like_an_exponent_stays_text(write, text):
    assert read_yaml(write(f"rate: {text}")) == {"rate": text.strip("'")}


@pytest.mark.parametrize(
    ("text", "place"),
    [("name: a\nname: b", r"file\.yaml:2:1"), ("inner:\n  rate: 1\n  rate: 2", r"file\.yaml:3:3")],
)
def test_a_key_that_comes_twice_is_refused_with_its_line(write, text, place):
    with pytest.raises(
        ConfigError, match=rf"{place}: not valid YAML; duplicate key '(name|rate)'"
    ):
        read_yaml(write(text))


def test_a_merged_key_may_be_replaced(write):
    text = "a: &a {rate: 1.0, steps: 2}\nb:\n  <<: *a\n  steps: 3\n"
    assert read_yaml(write(text))["b"] == {"rate": 1.0, "steps": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a document; got an empty file"),
        ("# only a comment\n", "must hold a document; got an empty file"),
        ("a: [1, 2", r"file\.yaml:1:9: not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML; could not determine a constructor"),
        ("? [a, b]\n: 1", r"file\.yaml:1:3: not valid YAML; a key must be text"),
        ("a: 1\n---\nb: 2", "not valid YAML; but found another document"),
        (b"name: \xff", "must be UTF-8 text; got byte 0xff at offset 6"),
        ("a: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_not_a_yaml_document_is_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(text))


def test_a_missing_file_and_a_folder_are_refused_by_their_path(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="must be a file; got a folder"):
        read_yaml(tmp_path)


def test_a_good_file_is_loaded_with_its_defaults(write):
    path = write("name: y\ninner: {rate: 1}\nflags: {a: true}")
    loaded = load_document(path, Outer)
    assert loaded == Outer(name="y", inner=Inner(rate=1.0), flags={"a": True})
    assert load_document(str(path), Outer) == loaded


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"nam": "y"}, r"f: nam: unknown key; got \"y\"\. Did you mean 'name'\?"),
        ({"zzz": 1}, r"f: zzz: unknown key; got 1\. Known: flags, inner, members, name\."),
        ({"inner": {"rat": 1}}, r"f: inner\.rat: unknown key; got 1\. Did you mean 'rate'\?"),
        ({"members": [{}, {"step": 1}]}, r"f: members\.1\.step: unknown key.*'steps'"),
        ({"inner": 3}, r"f: inner: must be a mapping; got 3\."),
        ({"members": {}}, r"f: members: must be a list; got \{\}\."),
        ({"inner": {"steps": 1.5}}, r"f: inner\.steps: must be a whole number; got 1\.5\."),
        ({"inner": {"steps": "1"}}, r"f: inner\.steps: must be a whole number; got \"1\"\."),
        ({"inner": {"steps": True}}, r"f: inner\.steps: must be a whole number; got true\."),
        ({"inner": {"rate": None}}, r"f: inner\.rate: must be a number; got null\."),
        ({"inner": {"rate": float("nan")}}, r"f: inner\.rate: must be finite; got NaN\."),
        ({"inner": {"rate": float("inf")}}, r"f: inner\.rate: must be finite; got Infinity\."),
        ({"name": 5}, r"f: name: must be text; got 5\. Quote it\."),
        ({"name": False}, r"f: name: must be text; got false\. Quote it\."),
        ({"flags": {"a": 1}}, r"f: flags\.a: must be true or false; got 1\."),
        ([1], r"f: must be a mapping; got \[1\]\."),
        ({1: 2}, r"f: 1: unknown key; got 2\."),
        ({"name": "z" * 300, "x": 1}, r"f: x: unknown key"),
    ],
)
def test_each_problem_is_told_with_file_place_rule_and_value(document, message):
    with pytest.raises(ConfigError, match=rf"\A{message}"):
        parse_document(document, Outer, where="f")


def test_a_date_is_text_as_written(write):
    assert load_document(write("name: 2024-01-31\n"), Outer).name == "2024-01-31"
    with pytest.raises(ConfigError, match=r"members\.0\.rate: must be .*got \"2024-13-31\"\."):
        load_document(write("members:\n- rate: 2024-13-31\n"), Outer)


def test_an_alias_that_holds_itself_is_refused(write):
    with pytest.raises(ConfigError, match="an alias holds itself"):
        load_document(write("members: &a [*a]"), Outer)


def test_all_problems_are_told_at_once_each_on_its_line():
    document = {"nam": 1, "inner": {"rate": "x", "stepz": 2}, "members": [{"steps": 0.5}]}
    with pytest.raises(ConfigError) as caught:
        parse_document(document, Outer, where="f.yaml")
    lines = str(caught.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == [
        "inner.rate",
        "inner.stepz",
        "members.0.steps",
        "nam",
    ]
    assert all(line.startswith("f.yaml: ") for line in lines)


def test_a_long_value_is_cut_short():
    with pytest.raises(ConfigError) as caught:
        parse_document({"inner": "z" * 500}, Outer, where="f")
    assert len(str(caught.value)) < 130


def test_resolved_documents_load_as_the_same_model():
    model = Outer(name="y", inner=Inner(rate=1e-7), members=[Inner(steps=3)], flags={"a": True})
    document = json.loads(json.dumps(model.resolved()))
    assert parse_document(document, Outer, where="f") == model


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n".join(["a0: &a0 [x, x]", *(
            f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)
        )]), "too large with its aliases; the limit is 100000 values"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("{a: " * 65 + "1" + "}" * 65, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_document_larger_than_any_file_that_people_write_is_refused_at_once(write, text, words):
    with pytest.raises(ConfigError, match=words):
        read_yaml(write(text))


def test_a_document_of_many_values_and_some_aliases_is_read(write):
    items = [{"weights": [0.1] * 50} for _ in range(500)]
    assert read_yaml(write(yaml.safe_dump({"a": items}))) == {"a": items}
    assert read_yaml(write("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n"))["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\0b", r"name: must be text; got a NUL or half a character in 'a\\x00b'"),
        ("\ud800", "name: must be text; got a NUL or half"),
        (10**400, "name: must be a number; got one of 1329 bits"),
        (-(10**400), "name: must be a number; got one of 1329 bits"),
    ],
)
def test_values_that_no_setting_takes_are_named(value, words):
    with pytest.raises(ConfigError, match=f"f.yaml: {words}"):
        parse_document({"name": value}, Outer, where="f.yaml")
