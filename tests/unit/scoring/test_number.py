import time
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


WRITTEN = [
    ("Total:\n- 18", "18"),
    ("so 20 - 2 = 18", "18"),
    ("\\boxed{9{,}500}", "9500"),
    ("The answer is \\frac{1}{2}.", "0.5"),
    ("It is 1/2.", "0.5"),
    ("1e5", "100000"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("$ -5", "-5"),
    ("- $5 less", "5"),
    ("\u20ac1,234.50", "1234.5"),
    ("1.234,56 \u20ac", "1234.56"),
    ("1.234.567", "1234567"),
    ("12,5 km", "12.5"),
    ("0,125", "0.125"),
    ("1,234", "1234"),
    ("12,34,567", "1234567"),
    ("1 000 000 people", "1000000"),
    ("9\u202f500", "9500"),
    ("9\u00a0500", "9500"),
    ("9\\,500", "9500"),
    ("1'234'567", "1234567"),
    ("1\u2019234", "1234"),
    ("1_000", "1000"),
    ("1 1/2", "1.5"),
    ("1\u00bd", "1.5"),
    ("\u00bd", "0.5"),
    ("1\\frac{1}{2}", "1.5"),
    ("-\\frac{3}{4}", "-0.75"),
    ("\\dfrac{-3}{4}", "-0.75"),
    ("\\frac12", "0.5"),
    ("\\frac{1{,}000}{4}", "250"),
    ("-1 1/2", "-1.5"),
    ("10^5", "100000"),
    ("2^{10}", "1024"),
    ("1.5 \\times 10^3", "1500"),
    ("1.5 x 10^3", "1500"),
    ("1.5\u00b710\u00b3", "1500"),
    ("10^{-3}", "0.001"),
    ("2**10", "1024"),
    ("3.2e-4", "0.00032"),
    ("(-2)^3", "-8"),
    ("12%", "12"),
    ("12\\%", "12"),
    ("\\$18", "18"),
    ("\\boxed{18 \\text{ dollars}}", "18"),
    ("\\boxed{\\$18} for all 3", "18"),
    ("\\boxed{-5}", "-5"),
    ("\\boxed{\\text{18}}", "18"),
    ("**18**", "18"),
    ("**-18**", "-18"),
    ("`18`", "18"),
    ("$18$", "18"),
    ("$x = -18$", "-18"),
    ("the area is 9 cm^2", "9"),
    ("9 m\u00b2", "9"),
    ("9 \\text{ cm}^2", "9"),
    ("9 \\mathrm{m}^{2}", "9"),
    ("x_2 = 7", "7"),
    ("x_{2} = 7", "7"),
    ("= - 5", "-5"),
    ("x = \u22125", "-5"),
    ("10\u201312", "12"),
    ("10-12", "12"),
    ("between 10 and 12", "12"),
    ("1, 2, 3", "3"),
    ("1,2,3", "3"),
    ("(3,4)", "4"),
    ("\u7b54\u6848\u662f18", "18"),
    ("\u7b54\u6848\u662f\uff11\uff18\u3002", "18"),
    ("\u0967\u096e", "18"),
    ("\u0661\u066c\u0662\u0663\u0664", "1234"),
    ("1. 3+4 = 7\n2. Done.", "7"),
    ("The answer is\n18. Fine", "18"),
    ("18.", "18"),
    ("- 5 apples", "5"),
    ("* 18", "18"),
    ("\u2022 18", "18"),
    ("USD 500", "500"),
    ("USD500", "500"),
    ("500 USD", "500"),
    ("Rs. 500", "500"),
    ("Rs500", "500"),
    ("US$5", "5"),
    ("18kg", "18"),
    ("5/0 or 7", "7"),
    ("v1.2.3 gives 4", "4"),
    ("2 300", "300"),
    ("Answer...18", "18"),
    ("The result: 1,000.", "1000"),
    ("5 \u00d7 10^2", "500"),
    ("100,000", "100000"),
    ("-1,234.5", "-1234.5"),
    ("+5", "5"),
    ("=-5", "-5"),
    ("3--2", "-2"),
    ("20$ - $2$", "2"),
    ("10^99999999 or 3", "3"),
    ("x-5", "5"),
    ("Answer: $\\frac{7}{8}$ cup", "0.875"),
    ("2/3 of 9 = 6", "6"),
    ("1e5 + 2", "2"),
    (".5", "0.5"),
    ("-.5", "-0.5"),
    ("He has 5 (five)", "5"),
    ("$1.5\\times10^{6}$", "1500000"),
    ("\\(18\\)", "18"),
    ("\\[ 18 \\]", "18"),
    ("It is $20 - 2 = 18$.", "18"),
    ("She has \u22123.", "-3"),
    ("3/4 cup", "0.75"),
    ("\u00a33.50", "3.5"),
    ("#### 5 apples and 3", "5"),
    ("####\n- 18", "18"),
    ("#### - 5", "-5"),
    ("#### 1/2", "0.5"),
    ("####1 1/2", "1.5"),
    ("#### \\$1{,}200", "1200"),
    ("12\u2009345", "12345"),
    ("5!", "5"),
    ("12,345,678.9", "12345678.9"),
    ("1,23", "1.23"),
    ("1e400", "1e400"),
    ("50\u2009%", "50"),
    ("Total = 3 \u2212 5 = \u22122", "-2"),
    ("the temperature is -5\u00b0C", "-5"),
    ("$\\boxed{\\frac{5}{2}}$", "2.5"),
    ("$\\boxed{2\\frac{1}{2}}$", "2.5"),
    ("2 3/4 cups", "2.75"),
    ("\\boxed{1\\,000}", "1000"),
    ("1/2/2023", "2023"),
    ("18 \\%", "18"),
    ("18 / 3 = 6", "6"),
    ("\\sqrt{16} = 4", "4"),
    ("\\approx 3.14", "3.14"),
    ("Answer: 1 234,50 \u20ac", "234.5"),
    ("ratio 3:4", "4"),
    ("10^5 people", "100000"),
    ("a_{n} = 5 \\cdot 10^{2}", "500"),
    ("**Answer:** 42", "42"),
    ("Answer: - 5", "-5"),
    ("from 5 to -3", "-3"),
    ("\u00a3-3", "-3"),
    ("\u2212\u00a33", "-3"),
    ("5 000,50", "5000.5"),
]
"""Numbers as people and models write them, with the value that is meant."""


@pytest.mark.parametrize(("text", "number"), WRITTEN)
def test_a_number_is_read_as_it_is_written(text, number):
    assert extract_number(text, marker="####") == Decimal(number)


@pytest.mark.parametrize(("text", "number"), WRITTEN)
def test_gold_answers_are_read_by_the_same_rule(text, number):
    assert same_number(f"#### {number}", text, marker="####")


def test_equal_fractions_are_equal_however_they_are_reduced():
    assert same_number("It is 2/3.", "#### 4/6", marker="####")
    assert not same_number("It is 0.67.", "#### 2/3", marker="####")


@pytest.mark.parametrize(
    "text",
    ["1," * 1000, "9" * 4000, "1/" * 1000, "1^" * 1000, "\\frac{" * 800, "-" * 2000 + "5"],
)
def test_a_long_degenerate_answer_is_read_in_linear_time(text):
    start = time.process_time()
    extract_number(text, marker="####")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "text", ["", "none", "####", "a1", "x^2", "9^99999999", "5/0", "cm2", "10^(99999)"]
)
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
