import pytest

from safemerge.generation.draft import draft_ask, drafted_question
from safemerge.generation.spec import WriterSpec

EXAMPLES = [f"example {number}" for number in range(9)]


def ask(attempt=0, seed="0", **changes):
    writer = WriterSpec(
        kind="model", prompt="About {topic}", count=1, system="You write.", **changes
    )
    return draft_ask(
        writer, attempt, prompt="{topic}\n{examples}", topics=["a", "b", "c"], examples=EXAMPLES,
        seed=seed,
    )  # fmt: skip


def test_a_draft_hangs_on_seed_and_attempt_alone():
    assert ask(3) == ask(3)
    assert ask(3) != ask(4)
    assert ask(3) != ask(3, seed="1")


def test_topics_and_examples_are_drawn_anew():
    asks = [ask(attempt, num_examples=2) for attempt in range(60)]
    assert {topic for _, topic in asks} == {"a", "b", "c"}
    shown = [tuple(made.prompt.splitlines()[1:]) for made, _ in asks]
    assert all(len(set(lines)) == 2 for lines in shown)
    assert {line.removeprefix("- ") for lines in shown for line in lines} == set(EXAMPLES)
    assert len({made.seed for made, _ in asks}) == 60


def test_sampling_and_system_message_are_the_declared_ones():
    made, topic = ask(temperature=0.5, top_p=0.7, max_tokens=9)
    assert (made.temperature, made.top_p, made.max_tokens) == (0.5, 0.7, 9)
    assert made.system == "You write."
    assert made.prompt.startswith(topic)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("How do birds fly?", "How do birds fly?"),
        ("\n 1. How do birds fly?\n2. And fish?", "How do birds fly?"),
        ('- "How do birds fly?"', "How do birds fly?"),
        ("Question: How do birds fly?\nAnswer: by flapping.", "How do birds fly?"),
        ("Q3) **How do birds fly?**", "How do birds fly?"),
        ("2023 was a good year?", "2023 was a good year?"),
        ("", None),
        ("finance", None),
        (" \n ", None),
    ],
)
def test_the_question_is_the_first_line_without_its_marks(text, question):
    assert drafted_question(text, finished=True) == question


def test_a_line_that_was_cut_is_no_question():
    assert drafted_question("How do birds that live on the", finished=False) is None
    assert drafted_question("How do birds fly?\nThey fl", finished=False) == "How do birds fly?"
