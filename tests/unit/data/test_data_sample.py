import hashlib

import pytest

from safemerge.data.sample import normalized_text, sample_id


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I  kill a process?", "how do i kill a process"),
        ("Line\nbreak", "line break"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}bc", "abc"),
        ("Stra\N{LATIN SMALL LETTER SHARP S}e", "STRASSE"),
        ("well-known", "well known"),
    ],
)
def test_prompts_that_differ_in_case_punctuation_or_spacing_come_out_equal(one, other):
    assert normalized_text(one) == normalized_text(other) != ""


@pytest.mark.parametrize(("one", "other"), [("a b", "ab"), ("plan 9", "plan 8"), ("un do", "do")])
def test_prompts_that_differ_in_a_word_stay_apart(one, other):
    assert normalized_text(one) != normalized_text(other)


def test_an_id_is_the_source_and_the_start_of_the_contents_digest():
    digest = hashlib.sha256("Grüße".encode()).hexdigest()
    assert sample_id("set", "Grüße") == f"set:{digest[:12]}"
