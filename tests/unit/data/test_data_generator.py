import math
import re
from typing import get_args

import pytest

from safemerge.config.source import GeneratorSource
from safemerge.data import generator
from safemerge.data.generator import GENERATORS, reviews
from safemerge.errors import DataError

SPLITS = {"train": 400, "search": 200, "report": 200, "rung": 200}
"""Rows of each split that are looked at."""

MOST = {"train": 20_000, "search": 4_400, "report": 4_400, "rung": 4_400}
"""Most rows of each split."""


@pytest.fixture(scope="module")
def rows():
    return {split: reviews(split=split, count=most, seed=0) for split, most in SPLITS.items()}


def words(rows):
    return {word for row in rows for word in re.findall(r"\w+", row["prompt"].casefold())}


def test_the_declared_generators_are_these():
    declared = get_args(GeneratorSource.model_fields["name"].annotation)
    assert set(declared) == set(GENERATORS)
    assert GENERATORS["reviews"] is reviews


def test_splits_share_no_text(rows):
    texts = {split: {row["prompt"] for row in made} for split, made in rows.items()}
    assert not texts["train"] & texts["search"]
    assert not texts["train"] & texts["report"]
    assert not texts["search"] & texts["report"]


def test_splits_share_no_product(rows):
    products = {split: set(names.split()) for split, names in generator._PRODUCTS.items()}
    for split, made in rows.items():
        for other, names in products.items():
            if other != split:
                assert not words(made) & names
        assert all(words([row]) & products[split] for row in made)


def test_held_out_splits_use_frames_that_training_does_not():
    for frames in (generator._CONTRAST, generator._AGREEMENT):
        assert not set(frames["train"]) & {*frames["search"], *frames["report"]}
        assert not set(frames["search"]) & set(frames["report"])


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_seed_gives_the_same_rows_and_another_seed_others(split):
    first = reviews(split=split, count=50, seed=3)
    assert reviews(split=split, count=50, seed=3) == first
    assert reviews(split=split, count=50, seed=4) != first


@pytest.mark.parametrize("count", [1, 7, 200])
@pytest.mark.parametrize("split", SPLITS)
def test_as_many_distinct_rows_come_back_as_were_asked_for(split, count):
    made = reviews(split=split, count=count, seed=1)
    assert len(made) == len({row["prompt"] for row in made}) == count


@pytest.mark.parametrize("split", ["search", "report"])
def test_every_possible_review_can_be_had(split):
    made = reviews(split=split, count=MOST[split], seed=0)
    assert len({row["prompt"] for row in made}) == MOST[split]
    assert sum(row["label"] == "positive" for row in made) == MOST[split] / 2


@pytest.mark.parametrize("split", MOST)
def test_more_reviews_than_there_are_is_refused_with_the_limit(split):
    words = (
        rf"generator 'reviews', split {split}: there are {MOST[split]} distinct reviews; "
        rf"got count={MOST[split] + 1}\. Lower the count"
    )
    with pytest.raises(DataError, match=words):
        reviews(split=split, count=MOST[split] + 1, seed=0)


def test_fewer_rows_are_the_beginning_of_more_rows():
    assert (
        reviews(split="train", count=10, seed=0) == reviews(split="train", count=90, seed=0)[:10]
    )


def test_labels_are_balanced_within_four_standard_deviations(rows):
    for made in rows.values():
        positive = sum(row["label"] == "positive" for row in made)
        assert abs(positive - len(made) / 2) < 4 * math.sqrt(len(made) / 4)


def test_the_verdict_decides_the_label_and_some_asides_speak_against_it(rows):
    asides = {aside.casefold(): sign for sign, many in generator._ASIDES.items() for aside in many}
    for made in rows.values():
        against = 0
        for row in made:
            text = row["prompt"].casefold()
            signs = {
                sign
                for sign, verdicts in generator._VERDICTS.items()
                if any(verdict.casefold() in text for verdict in verdicts)
            }
            assert signs == {row["label"]}
            against += any(
                aside in text and sign != row["label"] for aside, sign in asides.items()
            )
        share = against / len(made)
        spread = math.sqrt(generator.CONTRAST * (1 - generator.CONTRAST) / len(made))
        assert abs(share - generator.CONTRAST) < 4 * spread


def test_rows_have_a_prompt_and_a_label_and_no_unfilled_field(rows):
    for made in rows.values():
        for row in made:
            assert set(row) == {"prompt", "label"}
            assert not re.search(r"[{}]", row["prompt"])
            assert row["prompt"][0].isupper()
