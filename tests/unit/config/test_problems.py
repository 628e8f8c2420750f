from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from safemerge.config.base import StrictModel
from safemerge.config.problems import did_you_mean, problem_lines, shortened


class Red(StrictModel):
    kind: Literal["red"]
    shade: float = Field(default=0.5, ge=0, lt=1)


class Blue(StrictModel):
    kind: Literal["blue"]
    depth: int = Field(default=1, gt=0, le=9)
    red: str = ""


class Thing(StrictModel):
    name: str = Field(default="a", pattern=r"^[a-z]+$")
    colour: Annotated[Red | Blue, Field(discriminator="kind")] = Red(kind="red")
    size: Literal["small", "large"] = "small"
    label: float | int | bool | str = 1
    pair: list[int] = Field(default=[1, 2], min_length=2, max_length=2)


class Box(StrictModel):
    things: list[Thing] = Field(default_factory=list)
    by_key: dict[str, Thing] = Field(default_factory=dict)


def lines(document, model=Thing):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(document)
    return problem_lines(caught.value, model, document)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"colour": {"kind": "red", "shade": -1}}, "colour.shade: must be at least 0; got -1."),
        ({"colour": {"kind": "red", "shade": 1}}, "colour.shade: must be below 1; got 1."),
        ({"colour": {"kind": "blue", "depth": 0}}, "colour.depth: must be above 0; got 0."),
        ({"colour": {"kind": "blue", "depth": 10}}, "colour.depth: must be at most 9; got 10."),
        (
            {"colour": {"kind": "rad"}},
            "colour.kind: unknown choice; got \"rad\". Did you mean 'red'?",
        ),
        ({"colour": {"kind": "x"}}, 'colour.kind: unknown choice; got "x". Known: red, blue.'),
        ({"colour": {"shade": 0.1}}, "colour.kind: required key is missing. Add it."),
        ({"colour": "red"}, 'colour: must be a mapping; got "red".'),
        (
            {"colour": {"kind": "blue", "deep": 1}},
            "colour.deep: unknown key; got 1. Did you mean 'depth'?",
        ),
        # The tag of one kind is a field of the other.
        ({"colour": {"kind": "blue", "red": 1}}, "colour.red: must be text; got 1. Quote it."),
        (
            {"size": "smal"},
            "size: must be 'small' or 'large'; got \"smal\". Did you mean 'small'?",
        ),
        ({"size": 3}, "size: must be 'small' or 'large'; got 3."),
        ({"name": "A"}, 'name: must match the pattern ^[a-z]+$; got "A".'),
        ({"pair": [1]}, "pair: must have at least 2 items; got [1]."),
        ({"pair": [1, 2, 3]}, "pair: must have at most 2 items; got [1, 2, 3]."),
        (
            {"label": [1]},
            "label: must be a number, a whole number, true or false or text; got [1].",
        ),
    ],
)
def test_a_problem_is_one_line_with_rule_and_value(document, expected):
    assert lines(document) == [expected]


def test_members_of_a_list_go_by_their_name():
    document = {"things": [{"name": "a"}, {"name": "b", "size": 1}]}
    assert lines(document, Box) == ["things.b.size: must be 'small' or 'large'; got 1."]


@pytest.mark.parametrize("other", ["b", None])
def test_members_go_by_index_where_a_name_says_nothing(other):
    document = {"things": [{"name": other} if other else {}, {"name": "b", "size": 1}]}
    place = "things.1" if other else "things.b"
    assert lines(document, Box) == [f"{place}.size: must be 'small' or 'large'; got 1."]


def test_a_bad_name_is_not_used_as_a_place():
    document = {"things": [{"name": "a.b"}]}
    assert lines(document, Box) == ['things.0.name: must match the pattern ^[a-z]+$; got "a.b".']


def test_keys_of_a_mapping_are_part_of_the_place():
    document = {"by_key": {"x.y": {"sise": 1}}}
    assert lines(document, Box) == ["by_key.x.y.sise: unknown key; got 1. Did you mean 'size'?"]


def test_two_problems_of_a_place_do_not_hide_each_other():
    found = lines({"pair": ["a", "b"], "name": 3})
    assert found == [
        "name: must be text; got 3. Quote it.",
        'pair.0: must be a whole number; got "a".',
        'pair.1: must be a whole number; got "b".',
    ]


def test_advice_names_the_nearest_word_or_all():
    assert did_you_mean("densty", ["density", "weights"]) == "Did you mean 'density'?"
    assert did_you_mean("zzz", ["density", "weights"]) == "Known: density, weights."


def test_values_are_shown_as_json_of_at_most_80_characters():
    assert shortened({"a": [1, None]}) == '{"a": [1, null]}'
    assert len(shortened("x" * 200)) == 80
