import pytest
from pydantic import TypeAdapter, ValidationError

from safemerge.config.chat import DEFAULT_DATE, ChatArguments, DatedChatArguments

PLAIN, DATED = TypeAdapter(ChatArguments), TypeAdapter(DatedChatArguments)


def test_a_record_says_which_day_it_was():
    assert DATED.validate_python({}) == {"date": DEFAULT_DATE}
    given = {"enable_thinking": False, "date": "2026-01-31"}
    assert DATED.validate_python(given) == given
    assert PLAIN.validate_python({"enable_thinking": False}) == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"date": "31.1.2026"}, "date: must be a day like 2024-07-26; got '31.1.2026'"),
        ({"date": "20260131"}, "date: must be a day like"),
        ({"date": 2026}, "date: must be a day like 2024-07-26; got 2026"),
        ({"messages": "x"}, "got 'messages', which safemerge or transformers sets"),
        ({"strftime_now": "x"}, "got 'strftime_now', which"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, got):
    with pytest.raises(ValidationError, match=got):
        PLAIN.validate_python(arguments)
