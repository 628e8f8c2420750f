import pytest

from safemerge.scoring.coherence import MAX_REPEATS, is_incoherent


@pytest.mark.parametrize("text", ["", "  \n", "...", "?! -- *"])
def test_a_text_without_a_letter_or_digit_is_incoherent(text):
    assert is_incoherent(text)


def test_underscores_are_neither_letters_nor_digits():
    assert is_incoherent("____ __")


@pytest.mark.parametrize(
    "text", ["a", "7", "never, never, never again", "\N{CYRILLIC CAPITAL LETTER DE}a"]
)
def test_an_ordinary_text_is_coherent(text):
    assert not is_incoherent(text)


def test_three_in_a_row_are_allowed_and_four_are_not():
    assert MAX_REPEATS == 3
    assert not is_incoherent("we go go go home")
    assert is_incoherent("we go go go go home")


@pytest.mark.parametrize("text", ["Go go GO gO", "the, the; the\nthe", "ha!ha!ha!ha!", "1 1 1 1"])
def test_case_and_punctuation_do_not_hide_repeats(text):
    assert is_incoherent(text)


def test_repeats_must_be_in_a_row():
    assert not is_incoherent("go on go on go on go on go on")
    assert not is_incoherent("go go go stop go go go")
