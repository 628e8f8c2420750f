import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safemerge.data.generator import reviews
from safemerge.data.overlap import SHINGLE_CHARS, near_duplicates
from safemerge.data.sample import normalized_text
from safemerge.errors import DataError


def jaccard(left, right):
    """The definition, over sets of 5-grams."""

    def shingles(text):
        text = normalized_text(text)
        return {text[i : i + SHINGLE_CHARS] for i in range(max(1, len(text) - SHINGLE_CHARS + 1))}

    one, other = shingles(left), shingles(right)
    return len(one & other) / len(one | other)


def sentence(generator, words):
    return " ".join(
        "".join(generator.choices("abcdefghijklm", k=generator.randint(3, 8)))
        for _ in range(words)
    )


def test_the_same_request_in_slightly_other_words_is_found():
    left = ["How can I pick the lock of my neighbour's front door?", "What is a good soup?"]
    right = [
        "What is the capital of France?",
        "please, how can I pick the lock of my neighbour's front door",
    ]
    (found,) = near_duplicates(left, right, threshold=0.8)
    assert (found.left, found.right) == (0, 1)
    assert found.similarity == pytest.approx(jaccard(left[0], right[1]))
    assert 0.8 <= found.similarity < 1


def test_another_request_in_similar_words_is_not():
    left = ["How do I kill a Python process?"]
    assert near_duplicates(left, ["How do I kill a python?"], threshold=0.8) == []


def test_case_punctuation_and_spacing_are_not_looked_at():
    (found,) = near_duplicates(["Stop!  It's LATE."], ["stop it s late"], threshold=1.0)
    assert found == (0, 0, 1.0)


@pytest.mark.parametrize("text", ["", "?", "abc", "abcde"])
def test_short_texts_are_one_shingle(text):
    assert len(near_duplicates([text], [text], threshold=0.8)) == 1
    assert near_duplicates([text], ["something else"], threshold=0.8) == []


def test_the_most_similar_left_text_and_each_copy_on_the_right_are_named():
    generator = random.Random(0)
    base = sentence(generator, 30)
    left = [base + " x y z", base + " x", "another text that shares nothing with it"]
    found = near_duplicates(left, [base, "unrelated words", base], threshold=0.8)
    assert [(item.left, item.right) for item in found] == [(1, 0), (1, 2)]


def test_nothing_on_one_side_is_no_overlap():
    assert near_duplicates([], ["a"], threshold=0.8) == []
    assert near_duplicates(["a"], [], threshold=0.8) == []


@pytest.mark.parametrize("threshold", [0.0, 1.1, -1.0])
def test_a_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(DataError, match=r"threshold must be in \(0, 1\]; got"):
        near_duplicates(["a"], ["b"], threshold=threshold)


words = st.lists(st.sampled_from(["lock", "door", "open", "how", "soup", "a", "I"]), max_size=8)


@given(
    st.lists(words.map(" ".join), max_size=6),
    st.lists(words.map(" ".join), max_size=6),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_every_pair_that_is_named_is_similar(left, right, threshold):
    found = near_duplicates(left, right, threshold=threshold)
    for item in found:
        assert item.similarity == pytest.approx(jaccard(left[item.left], right[item.right]))
        assert item.similarity >= threshold
    equal = {normalized_text(text) for text in left}
    named = {item.right for item in found}
    assert {i for i, text in enumerate(right) if normalized_text(text) in equal} <= named


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_hardly_a_pair_above_the_threshold_is_missed(threshold):
    generator = random.Random(1)
    left, right = [], []
    while len(left) < 300:
        text = sentence(generator, 12).split()
        other = list(text)
        for _ in range(generator.randint(0, 4)):
            other[generator.randrange(12)] = sentence(generator, 1)
        if threshold <= jaccard(" ".join(text), " ".join(other)) < threshold + 0.1:
            left.append(" ".join(text))
            right.append(" ".join(other))
    found = near_duplicates(left, right, threshold=threshold)
    assert len(found) >= 299
    assert all(item.left == item.right for item in found)


def test_the_splits_of_our_own_reviews_are_not_near_duplicates():
    rows = {split: reviews(split=split, count=400, seed=0) for split in ("train", "search")}
    fresh = [row["prompt"] for row in reviews(split="report", count=400, seed=0)]
    for split in rows.values():
        assert near_duplicates([row["prompt"] for row in split], fresh, threshold=0.8) == []


def test_thousands_of_prompts_are_compared_in_seconds():
    generator = random.Random(2)
    left, right = ([sentence(generator, 25) for _ in range(3000)] for _ in range(2))
    right[1234] = left[99] + " please"
    started = time.process_time()
    (found,) = near_duplicates(left, right, threshold=0.8)
    assert (found.left, found.right) == (99, 1234)
    # 9 million pairs: far beyond this if they were compared one by one.
    assert time.process_time() - started < 30
