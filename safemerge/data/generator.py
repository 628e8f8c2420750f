"""Our own generators of labelled text: exact labels, no download, thousands of distinct rows.

``reviews``: short product reviews. A quarter of them concede one aspect against the overall
verdict, so that the sign of single words does not decide. The splits share no product, and the
held-out splits use sentence frames that training does not.
"""

from __future__ import annotations

import random
from typing import Any

from safemerge.data.unsafe_question import unsafe_questions
from safemerge.errors import DataError

_PRODUCTS = {
    "train": "phone laptop blender kettle tent backpack headset lamp chair camera printer watch "
    "vacuum mattress toaster keyboard bicycle jacket stroller drill",
    "search": "tablet heater speaker sofa scooter monitor suitcase grill fan router",
    "report": "freezer microphone wardrobe telescope rucksack projector mower juicer scanner rug",
    "rung": "guitar teapot bookshelf dryer doorbell thermostat wallet umbrella helmet oven",
}
_VERDICTS = {
    "positive": (
        "works flawlessly",
        "feels solid",
        "is a joy to use",
        "exceeded what I hoped for",
        "still runs like new",
        "saved me hours",
        "makes every morning easier",
        "is worth every cent",
        "looks even better in person",
        "never lets me down",
    ),
    "negative": (
        "broke within a week",
        "feels flimsy",
        "is a pain to use",
        "fell short of what I hoped for",
        "already needs repair",
        "wasted my weekend",
        "makes every morning worse",
        "is not worth half the price",
        "looks cheap in person",
        "keeps letting me down",
    ),
}
_ASIDES = {
    "positive": (
        "the battery lasts",
        "the build quality impressed me",
        "delivery was quick",
        "setup took a minute",
        "the manual is clear",
        "the colour is lovely",
        "support answered at once",
    ),
    "negative": (
        "the battery drains fast",
        "the build quality disappointed me",
        "delivery took weeks",
        "setup took all evening",
        "the manual is useless",
        "the colour faded",
        "support never answered",
    ),
}
_CONTRAST = {
    "train": (
        "Overall the {product} {verdict}, although {aside}.",
        "{Aside}, but in the end this {product} {verdict}.",
        "I bought this {product} last month. {Aside}, yet it {verdict}.",
        "My verdict on the {product}: it {verdict}, even if {aside}.",
    ),
    "search": (
        "Though {aside}, this {product} {verdict}.",
        "{Aside}. Still, all in all the {product} {verdict}.",
    ),
    "report": (
        "Granted, {aside}; even so the {product} {verdict}.",
        "{Aside}, I admit. But taken together the {product} {verdict}.",
    ),
    "rung": (
        "True, {aside}; for all that our {product} {verdict}.",
        "{Aside}, no question. On balance this {product} {verdict}.",
    ),
}
_AGREEMENT = {
    "train": (
        "This {product} {verdict}, and {aside}.",
        "{Aside}. The {product} {verdict}.",
        "The {product} {verdict}.",
        "I bought this {product} last month. {Aside}, and it {verdict}.",
    ),
    "search": ("What a {product}: it {verdict}, and {aside}.", "Our {product} {verdict}."),
    "report": ("{Aside}, and on top of that the {product} {verdict}.", "My {product} {verdict}."),
    "rung": ("To sum up my {product}: {aside}, and it {verdict}.", "Their {product} {verdict}."),
}


CONTRAST = 0.25
"""Share of reviews whose aside speaks against the verdict."""


def reviews(*, split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Write distinct labelled product reviews.

    Rows are drawn without replacement, so that near the largest count the shares of the frames,
    and with them that of the conceding reviews, are those of all possible reviews.

    Args:
        split: ``train``, ``search``, ``report`` or ``rung`` (for a study's low rung); splits
            share no product and no frame.
        count: Rows wanted, at least 1; at most 20000 of ``train``, 4400 of the other splits.
        seed: Same seed, same rows.

    Returns:
        `count` rows with ``prompt`` (the review) and ``label`` (``positive`` or ``negative``),
        balanced in expectation.

    Raises:
        DataError: If there are not that many distinct reviews.
    """
    generator = random.Random(f"reviews/{split}/{seed}")
    products = _PRODUCTS[split].split()
    possible = _num_reviews(split)
    if count > possible:
        raise DataError(
            f"generator 'reviews', split {split}: there are {possible} distinct reviews; got "
            f"count={count}. Lower the count, or add another source."
        )
    rows: dict[str, str] = {}
    while len(rows) < count:
        label, other = generator.choice((("positive", "negative"), ("negative", "positive")))
        contrast = generator.random() < CONTRAST
        frames = (_CONTRAST if contrast else _AGREEMENT)[split]
        aside = generator.choice(_ASIDES[other if contrast else label])
        text = generator.choice(frames).format(
            product=generator.choice(products),
            verdict=generator.choice(_VERDICTS[label]),
            aside=aside,
            Aside=aside[0].upper() + aside[1:],
        )
        rows.setdefault(text, label)
    return [{"prompt": text, "label": label} for text, label in rows.items()]


def _num_reviews(split: str) -> int:
    frames = [*_CONTRAST[split], *_AGREEMENT[split]]
    # Either label: so many asides (1 for a frame without one) of so many verdicts on a product.
    asides = sum(len(_ASIDES["positive"]) if "side}" in frame else 1 for frame in frames)
    return 2 * len(_PRODUCTS[split].split()) * len(_VERDICTS["positive"]) * asides


GENERATORS = {"reviews": reviews, "unsafe-questions": unsafe_questions}
"""Generators by name."""
