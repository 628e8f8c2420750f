"""Near-duplicates between two sets of texts: MinHash finds candidates, exact overlap decides.

Texts are compared by their character 5-grams after `normalized_text`: similarity is the
Jaccard index of the two sets of 5-grams. MinHash signatures with locality-sensitive hashing
only say which pairs are worth comparing, so no pair is reported that is not similar; one of
exactly the threshold's similarity is missed with a chance below 0.001, a more similar one more
rarely.

References:
    Broder, On the resemblance and containment of documents, SEQUENCES 1997. Leskovec,
    Rajaraman and Ullman, *Mining of Massive Datasets*, chapter 3 (banding). Lee et al.,
    Deduplicating training data makes language models better, arXiv:2107.06499 (NearDup, 0.8).
    Departure: characters instead of words, since prompts are short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from safemerge.data.sample import normalized_text
from safemerge.errors import DataError

SHINGLE_CHARS = 5
"""Characters of a shingle; a shorter text is one shingle."""

NUM_HASHES = 64
"""Values of a MinHash signature."""

_MISSED = 1e-3
_MARGIN = 0.25
"""Signatures this far below the threshold are not compared in full: four standard errors."""

_Hashes = npt.NDArray[np.uint64]


class Overlap(NamedTuple):
    """Two texts that are near-duplicates."""

    left: int
    """Position among the left texts."""
    right: int
    """Position among the right texts."""
    similarity: float
    """Jaccard index of their 5-grams, in [threshold, 1]."""


def near_duplicates(
    left: Sequence[str], right: Sequence[str], *, threshold: float
) -> list[Overlap]:
    """Find the right texts that nearly repeat a left text.

    Args:
        left: Texts, e.g. the prompts of the search split.
        right: Texts that must not repeat them.
        threshold: Smallest Jaccard index that counts, in (0, 1].

    Returns:
        For each right text with a near-duplicate one entry, in order; which of several left
        texts it names is the most similar one among the candidates.

    Raises:
        DataError: If the threshold is out of range.
    """
    if not 0.0 < threshold <= 1.0:
        raise DataError(f"near-duplicates: threshold must be in (0, 1]; got {threshold:g}.")
    if not left or not right:
        return []
    # Equal texts are compared once.
    left_texts = {normalized_text(text): index for index, text in reversed([*enumerate(left)])}
    right_texts = [normalized_text(text) for text in right]
    kept = list(left_texts)
    distinct = list(dict.fromkeys(right_texts))
    left_signatures, right_signatures = _signatures(kept), _signatures(distinct)
    found: dict[str, tuple[int, float]] = {}
    for index, candidates in enumerate(
        _candidates(left_signatures, right_signatures, _rows_per_band(threshold))
    ):
        if len(candidates) == 0:
            continue
        agreeing = left_signatures[candidates] == right_signatures[index]
        likely = candidates[agreeing.mean(axis=1) >= threshold - _MARGIN]
        shingles = _shingle_set(distinct[index])
        best = max(
            ((_jaccard(_shingle_set(kept[one]), shingles), -int(one)) for one in likely),
            default=(0.0, 0),
        )
        if best[0] >= threshold:
            found[distinct[index]] = (left_texts[kept[-best[1]]], best[0])
    return [
        Overlap(found[text][0], position, found[text][1])
        for position, text in enumerate(right_texts)
        if text in found
    ]


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def _shingle_set(text: str) -> frozenset[str]:
    last = max(1, len(text) - SHINGLE_CHARS + 1)
    return frozenset(text[start : start + SHINGLE_CHARS] for start in range(last))


def _rows_per_band(threshold: float) -> int:
    """Longest bands that still miss a pair at the threshold with a chance below `_MISSED`."""
    for rows in (16, 8, 4, 2):
        if (1 - threshold**rows) ** (NUM_HASHES // rows) < _MISSED:
            return rows
    return 1


def _mixed(values: _Hashes) -> _Hashes:
    """Scatter 64-bit values (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _signatures(texts: Sequence[str]) -> _Hashes:
    """MinHash signatures, shape (texts, NUM_HASHES)."""
    signatures = np.empty((len(texts), NUM_HASHES), dtype=np.uint64)
    seeds = _mixed(np.arange(1, NUM_HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    for start, stop in _slices(texts):
        shingles, firsts = _shingle_hashes(texts[start:stop])
        for place, seed in enumerate(seeds):
            signatures[start:stop, place] = np.minimum.reduceat(_mixed(shingles ^ seed), firsts)
    return signatures


def _slices(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Cut texts into slices of about a million characters, which bounds memory."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size > 1_000_000:
            yield start, index + 1
            start, size = index + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _shingle_hashes(texts: Sequence[str]) -> tuple[_Hashes, npt.NDArray[np.int64]]:
    """Hashes of all texts' shingles end to end, and where each text's begin."""
    padded = [text.ljust(SHINGLE_CHARS, "\0") for text in texts]
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    lengths = np.array([len(text) for text in padded], dtype=np.int64)
    counts = lengths - SHINGLE_CHARS + 1
    ends = np.cumsum(counts)
    firsts = ends - counts
    # Positions in `codes` at which a shingle begins: all but each text's last few.
    starts = np.arange(ends[-1]) + np.repeat(np.arange(len(texts)) * (SHINGLE_CHARS - 1), counts)
    hashes = np.zeros(len(starts), dtype=np.uint64)
    for place in range(SHINGLE_CHARS):
        hashes = hashes * np.uint64(0x100000001B3) + codes[starts + place].astype(np.uint64)
    return _mixed(hashes), firsts


def _candidates(left: _Hashes, right: _Hashes, rows: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield, for each right signature, the left ones that share a band with it."""
    buckets = []
    for first in range(0, NUM_HASHES, rows):
        members: dict[bytes, list[int]] = {}
        for index, band in enumerate(np.ascontiguousarray(left[:, first : first + rows])):
            members.setdefault(band.tobytes(), []).append(index)
        buckets.append((first, members))
    for signature in right:
        hits: set[int] = set()
        for first, members in buckets:
            hits.update(members.get(signature[first : first + rows].tobytes(), ()))
        yield np.array(sorted(hits), dtype=np.int64)
