from decimal import Decimal

import pytest

from safemerge.scoring.number import extract_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 eggs.\n#### 7", "7"),
        ("#### 1,234", "1234"),
        ("####$18.50 a day", "18.5"),
        ("#### -5", "-5"),
        ("#### \N{MINUS SIGN}5", "-5"),
        ("#### .5", "0.5"),
        ("first #### 3, no: #### 4 and 5", "4"),
        ("The answer is 72.", "72"),
        ("It costs $1,000,000.00 in 2 years, so 12%", "12"),
        ("#### none, but 9 before", "9"),
        ("Room 3a has 4 chairs", "4"),
        ("x2 = 8", "8"),
        ("between 10-12", "12"),
        ("1.5.", "1.5"),
    ],
)
def test_the_final_number_is_found(text, number):
    assert extract_number(text, marker="####") == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "####", "a1"])
def test_an_answer_without_a_number_has_none(text):
    assert extract_number(text, marker="####") is None


def test_without_a_marker_the_last_number_counts():
    assert extract_number("#### 3 then 4", marker="") == 4


@pytest.mark.parametrize(
    ("text", "gold", "same"),
    [
        ("so 18.00", "9 + 9 = <<9+9=18>>18\n#### 18", True),
        ("#### 1,800", "#### 1800", True),
        ("#### 18.01", "#### 18", False),
        ("eighteen", "#### 18", False),
        ("18", "no number", False),
        ("nothing", "nothing", False),
    ],
)
def test_equal_numbers_are_the_same_however_written(text, gold, same):
    assert same_number(text, gold, marker="####") is same
