import datetime
import json

import pytest

from safemerge.data.value import WrittenNumber, as_text, filled, is_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (True, "true"),
        (5, "5"),
        (5.0, "5.0"),
        (WrittenNumber("2.50"), "2.50"),
        (WrittenNumber("1E5"), "1E5"),
        (["a", 1, None], '["a", 1, null]'),
        ({"k": [WrittenNumber("1.0")]}, '{"k": [1.0]}'),
        ({"ü": "海"}, '{"ü": "海"}'),
        (datetime.date(2023, 1, 5), "2023-01-05"),
    ],
)
def test_a_value_is_text_as_json_writes_it(value, text):
    assert as_text(value) == text


@pytest.mark.parametrize(("value", "got"), [(None, "null"), (b"\xff", "bytes")])
def test_what_is_no_text_is_refused(value, got):
    with pytest.raises(ValueError, match=f"^{got}$"):
        as_text(value)


def test_a_written_number_counts_as_its_value():
    number = WrittenNumber("2.50")
    assert (number, json.dumps(number), str(number)) == (2.5, "2.5", "2.50")


@pytest.mark.parametrize(
    ("value", "wanted", "same"),
    [
        ("1", 1, True),
        ("1.0", 1, True),
        ("one", 1, False),
        (WrittenNumber("1.0"), 1, True),
        (1, "1", True),
        ("TRUE", True, True),
        (True, True, True),
        (1, True, False),
        (True, 1, False),
        (None, "null", False),
        (["a"], "a", False),
    ],
)
def test_values_are_compared_by_what_they_say(value, wanted, same):
    assert is_value(value, wanted) is same


def test_fields_are_filled_as_written_and_formats_are_pythons():
    columns = {"n": WrittenNumber("2.50"), "b": False, "l": [WrittenNumber("3.0"), {"k": True}]}
    assert filled("{n} {n:.0f} {b} {l[0]} {l[1][k]} {l}", columns) == (
        '2.50 2 false 3.0 true [3.0, {"k": true}]'
    )
