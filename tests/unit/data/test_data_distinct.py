import pytest

from safemerge.data.distinct import DistinctTexts

EXAMPLE = "How do I boil an egg for breakfast?"
TEXTS = (
    "How do I peel a boiled egg quickly?",
    "how do i peel a boiled egg, quickly",
    "How do I peel a boiled egg quickly?!",
    "How do I peel a boiled egg quickly now?",
    "HOW DO I BOIL AN EGG FOR BREAKFAST",
    "How do I boil an egg for breakfast, please?",
    "Which pan is best for pancakes?",
)
FOUND = (
    None, "duplicate", "duplicate", "near-duplicate", "copy of an example",
    "near-copy of an example", None,
)  # fmt: skip


def test_each_repeat_is_named_by_what_it_repeats():
    distinct = DistinctTexts([EXAMPLE], threshold=0.8)
    assert tuple(distinct.add(TEXTS)) == FOUND
    assert distinct.kept == [TEXTS[0], TEXTS[6]]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_what_is_kept_does_not_hang_on_the_batches(size):
    distinct = DistinctTexts([EXAMPLE], threshold=0.8)
    parts = [TEXTS[start : start + size] for start in range(0, len(TEXTS), size)]
    assert tuple(item for part in parts for item in distinct.add(part)) == FOUND


def test_many_texts_are_compared_with_all_before_them():
    texts = [f"Question number {number} of a long list, as it stands" for number in range(200)]
    distinct = DistinctTexts(threshold=None)
    assert distinct.add(texts) == [None] * 200
    near = DistinctTexts(threshold=0.5)
    assert near.add(texts) == [None, *["near-duplicate"] * 199]


def test_without_a_threshold_only_equal_texts_are_dropped():
    distinct = DistinctTexts([EXAMPLE], threshold=None)
    kept = [None if item and item.startswith("near") else item for item in FOUND]
    assert distinct.add(TEXTS) == kept
