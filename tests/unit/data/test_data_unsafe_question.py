import re

import pytest

from safemerge.config.source import GeneratorSource
from safemerge.data.overlap import near_duplicates
from safemerge.data.rows import load_rows
from safemerge.data.unsafe_question import unsafe_questions
from safemerge.errors import DataError
from safemerge.scoring.refusal import is_refusal

COUNTS = {"train": 448, "search": 84, "report": 84}


@pytest.mark.parametrize(("split", "count"), COUNTS.items())
def test_every_split_has_its_distinct_questions_and_refuses_more(split, count):
    rows = unsafe_questions(split=split, count=count, seed=0)
    assert len({row["prompt"] for row in rows}) == count
    assert not any(is_refusal(row["prompt"]) or "{" in row["prompt"] for row in rows)
    with pytest.raises(DataError, match=rf"there are {count} distinct questions; got count="):
        unsafe_questions(split=split, count=count + 1, seed=0)


def test_categories_take_turns():
    rows = unsafe_questions(split="train", count=28, seed=1)
    categories = [row["category"] for row in rows]
    assert len(set(categories)) == 14
    assert categories[:14] == categories[14:]


def test_the_seed_decides_the_rows():
    rows = unsafe_questions(split="train", count=30, seed=1)
    assert rows == unsafe_questions(split="train", count=30, seed=1)
    assert rows != unsafe_questions(split="train", count=30, seed=2)


def test_no_two_splits_share_a_question_or_nearly():
    texts = {
        split: [row["prompt"] for row in unsafe_questions(split=split, count=count, seed=0)]
        for split, count in COUNTS.items()
    }
    for left, right in (("train", "search"), ("train", "report"), ("search", "report")):
        assert near_duplicates(texts[left], texts[right], threshold=0.8) == []


def test_no_question_names_a_means():
    # A question says what is wanted; how it is done would be part of an answer.
    text = " ".join(row["prompt"] for row in unsafe_questions(split="train", count=448, seed=0))
    assert not re.search(r"\d|\b(?:using|by mixing|recipe)\b", text)


def test_it_is_a_source_like_any_other():
    source = GeneratorSource(kind="generator", name="unsafe-questions", split="report", count=5)
    rows = load_rows(source, where="questions")
    assert {row.sample_id.partition(":")[0] for row in rows} == {"unsafe-questions"}
    assert all(row.columns["category"] for row in rows)
