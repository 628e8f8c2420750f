"""Random masks that depend on names and positions only, and MagPrune, which drops by rank.

Whether an entry is kept is a pure function of (seed, tensor name, expert name, flat index): a
counter goes through a keyed integer hash. So a mask is the same on any device, in any shard
order, with any number of workers, and for any part of a tensor.

References:
    Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011 (counter-based
        generators).
    Wellons, Hash Prospector, 2018, `triple32`, whose multipliers and shifts are used, with a
        second key word between the rounds and without the last shift, which does not touch the
        leading bits that decide.
    Deep et al., DELLA-Merging, arXiv:2406.11617 (MagPrune).
"""

import hashlib
import json
from collections.abc import Hashable
from threading import Lock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from torch import Tensor

from safemerge.errors import MergeError

ROUNDS = ((0xED5AD4BB, 17), (0xAC4C1B51, 11), (0x31848BAB, 15))
"""Multiplier and shift of each round; the key's second word is added before the second."""

KEY_RUN = 1 << 32
"""Flat indices that share a key."""

_RESOLUTION = 1 << 31


class MaskKey(NamedTuple):
    """Two signed 32-bit words that name one stream of random numbers."""

    first: int
    second: int


def mask_key(seed: int, tensor: str, expert: str, *, block: int = 0) -> MaskKey:
    """Return the key of a mask: 64 bits of SHA-256 over seed, names and block.

    Args:
        seed: The recipe's seed, 0 <= seed < 2**63.
        tensor: Tensor name.
        expert: Expert name.
        block: Which run of 2**32 flat indices.

    Returns:
        Two words, each in [-2**31, 2**31).
    """
    text = json.dumps([seed, tensor, expert, block])
    content = hashlib.sha256(text.encode()).digest()
    return MaskKey(*(int.from_bytes(content[at : at + 4], "little", signed=True) for at in (0, 4)))


def keep_mask(
    seed: int,
    tensor: str,
    expert: str,
    start: int,
    stop: int,
    density: float,
    *,
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "entries"]:
    """Return which entries of a range of flat indices are kept.

    Each entry is kept with probability `density` (to a resolution of 2**-31), independently.
    Any range gives the same values as the same part of the whole.

    Args:
        seed: The recipe's seed, 0 <= seed < 2**63.
        tensor: Tensor name.
        expert: Expert name.
        start: First flat index, included, 0-indexed.
        stop: Last flat index, excluded.
        density: Probability of keeping an entry, in (0, 1].
        device: Where the mask is computed and returned.

    Returns:
        One boolean for each flat index in [start, stop).

    Raises:
        MergeError: If the range is not ascending or density is outside (0, 1].
    """
    return keep_bits(seed, tensor, expert, start, stop, density, device=device) < 0


def keep_bits(
    seed: int,
    tensor: str,
    expert: str,
    start: int,
    stop: int,
    density: float,
    *,
    device: torch.device | str = "cpu",
) -> Int32[Tensor, "entries"]:
    """Return `keep_mask` as integers with all bits set (-1) to keep and clear (0) to drop.

    Applied to float32 bits with a bitwise and, it drops entries to +0 several times faster
    than a boolean mask does on CPUs.

    Args:
        seed: The recipe's seed, 0 <= seed < 2**63.
        tensor: Tensor name.
        expert: Expert name.
        start: First flat index, included, 0-indexed.
        stop: Last flat index, excluded.
        density: Probability of keeping an entry, in (0, 1].
        device: Where the bits are computed and returned.

    Returns:
        -1 or 0 for each flat index in [start, stop).

    Raises:
        MergeError: If the range is not ascending or density is outside (0, 1].
    """
    where = f"tensor '{tensor}', expert '{expert}'"
    if not 0 <= start <= stop:
        raise MergeError(
            f"{where}: 0 <= start <= stop must hold; got start={start}, stop={stop}. "
            f"Give a range of flat indices."
        )
    limit = keep_limit(density, where=where)
    words = _words_of_range(seed, tensor, expert, start, stop, device)
    # NOTE: halved words keep the subtraction within 32 bits; its sign is the comparison.
    return words.bitwise_right_shift_(1).sub_(limit).bitwise_right_shift_(31)


def keep_limit(density: float, *, where: str = "mask") -> int:
    """Return the limit that halved random words of kept entries are below.

    Args:
        density: Probability of keeping an entry, in (0, 1].
        where: Place named in messages.

    Returns:
        An integer in [-2**30 + 1, 2**30].

    Raises:
        MergeError: If density is outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise MergeError(
            f"{where}: density must be in (0, 1]; got {density}. Drop an expert by weight 0."
        )
    return max(1, round(density * _RESOLUTION)) - (_RESOLUTION >> 1)


def keep_limits(probabilities: Float64[Tensor, "entries"]) -> Int32[Tensor, "entries"]:
    """Return keep probabilities in the form that `keep_bits_within` compares with.

    Args:
        probabilities: Probability of keeping an entry, each in (0, 1].

    Returns:
        One limit for each, in [-2**30 + 1, 2**30].

    Raises:
        MergeError: If a probability is outside (0, 1].
    """
    if not bool(((probabilities > 0.0) & (probabilities <= 1.0)).all()):
        raise MergeError(
            f"mask: keep probabilities must be in (0, 1]; got {float(probabilities.min()):g} to "
            f"{float(probabilities.max()):g}. Make epsilon smaller."
        )
    steps = (probabilities * _RESOLUTION).round().clamp_min(1.0)
    return (steps - (_RESOLUTION >> 1)).to(torch.int32)


def keep_bits_within(
    seed: int, tensor: str, expert: str, start: int, limits: Int32[Tensor, "entries"]
) -> Int32[Tensor, "entries"]:
    """As `keep_bits`, with a probability of its own for each entry; the same random numbers.

    Args:
        seed: The recipe's seed, 0 <= seed < 2**63.
        tensor: Tensor name.
        expert: Expert name.
        start: First flat index, 0-indexed.
        limits: Keep probabilities of the entries from `start` on, as `keep_limits` gives them.

    Returns:
        -1 (keep) or 0 (drop) for each entry.
    """
    stop = start + limits.numel()
    words = _words_of_range(seed, tensor, expert, start, stop, limits.device)
    return words.bitwise_right_shift_(1).sub_(limits).bitwise_right_shift_(31)


def _words_of_range(
    seed: int, tensor: str, expert: str, start: int, stop: int, device: torch.device | str
) -> Int32[Tensor, "entries"]:
    parts: list[Tensor] = []
    while start < stop or not parts:
        block, first = divmod(start, KEY_RUN)
        end = min(stop, (block + 1) * KEY_RUN)
        key = mask_key(seed, tensor, expert, block=block)
        parts.append(_random_words(key, first, end - start, device))
        start = end
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _random_words(
    key: MaskKey, first: int, count: int, device: torch.device | str
) -> Int32[Tensor, "entries"]:
    words = torch.arange(count, dtype=torch.int32, device=device)
    words.add_(_signed(key.first + first))
    scratch = torch.empty_like(words)
    for at, (multiplier, shift) in enumerate(ROUNDS):
        if at == 1:
            words.add_(key.second)
        torch.bitwise_right_shift(words, shift, out=scratch)
        # NOTE: torch shifts keep the sign; the and makes it the logical shift the hash needs.
        scratch.bitwise_and_((1 << (32 - shift)) - 1)
        words.bitwise_xor_(scratch).mul_(_signed(multiplier))
    return words


def _signed(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


Ranks = npt.NDArray[np.uint16]
"""Rank of each entry in its row, flattened; 0 is the largest magnitude."""

MAX_COLUMNS = 1 << 16
"""Longest row whose ranks are held in sixteen bits."""

_CHUNK = 1 << 18
"""Entries that are ranked together, whole rows of them."""

MAX_BYTES = 1 << 30
"""Memory that held ranks may take, 1 GiB: two bytes an entry and expert."""


def columns_by_magnitude(rows: Tensor) -> Int64[Tensor, "rows columns"]:
    """Return the column of each rank: largest magnitude first, the lower of equal ones first.

    Args:
        rows: Rows of a task vector, float32.

    Returns:
        Columns by row and rank, on the device of the rows.
    """
    if rows.device.type != "cpu":
        return torch.sort(rows.abs(), dim=1, descending=True, stable=True).indices
    # NOTE: bits of a positive float order as the float does. With the column in the low half,
    # plain values are sorted, for which numpy has vector code, as it has not for orders.
    last = rows.shape[1] - 1
    column = torch.arange(last, -1, -1)
    keys = rows.abs().view(torch.int32).to(torch.int64).bitwise_left_shift_(32)
    keys.bitwise_or_(column).numpy().sort(axis=1)
    return keys.bitwise_and_((1 << 32) - 1).neg_().add_(last).flip(1)


def ranks_in_rows(model: Tensor, base: Tensor, *, num_columns: int) -> Ranks:
    """Return the rank of every entry of model minus base in its row.

    Args:
        model: An expert's tensor, on the CPU.
        base: The base's, of its shape.
        num_columns: Entries of a row, at most `MAX_COLUMNS`.

    Returns:
        Two bytes an entry; what NaN gets is not defined.
    """
    flat, origin = model.flatten(), base.flatten()
    found = np.empty(flat.numel(), dtype=np.uint16)
    by_rank = np.arange(num_columns, dtype=np.uint16)
    length = max(1, _CHUNK // num_columns) * num_columns
    for start in range(0, len(flat), length):
        stop = min(start + length, len(flat))
        part = torch.sub(flat[start:stop], origin[start:stop].to(torch.float32))
        order = columns_by_magnitude(part.view(-1, num_columns)).numpy()
        np.put_along_axis(found[start:stop].reshape(order.shape), order, by_rank[None], axis=1)
    return found


class RankCache:
    """Ranks of ingredients' tensors between candidates, up to some bytes; then no more are held.

    What is held stays: candidates of a search go over the same tensors in the same order, where
    dropping the oldest would drop each just before it is asked for again. Safe to share among
    threads.

    Args:
        max_bytes: Memory that ranks may take.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._left = max_bytes
        self._held: dict[Hashable, Ranks] = {}
        self._lock = Lock()

    def get(self, key: Hashable) -> Ranks | None:
        """Return ranks, None if they are not held."""
        with self._lock:
            return self._held.get(key)

    def put(self, key: Hashable, ranks: Ranks) -> None:
        """Hold ranks, if there is room."""
        with self._lock:
            if key not in self._held and ranks.nbytes <= self._left:
                self._held[key] = ranks
                self._left -= ranks.nbytes


def rank_probabilities(
    num_columns: int, *, density: float, epsilon: float
) -> Float64[Tensor, "columns"]:
    """Return keep probabilities by magnitude rank, the largest entry of a row first.

    They fall in equal steps from density + epsilon to density - epsilon; a row of one entry
    has density.

    Args:
        num_columns: Entries of a row.
        density: Mean keep probability, in (0, 1].
        epsilon: Half the span, >= 0; density - epsilon must be above 0, their sum at most 1.

    Returns:
        One probability for each rank, on the CPU.

    Raises:
        MergeError: If a probability is outside (0, 1].

    References:
        arXiv:2406.11617, section 3.1 (p_min and the rank step). As in mergekit, the largest
        magnitude has the largest keep probability, and density is the middle.
    """
    if not (density - epsilon > 0.0 and density + epsilon <= 1.0 + 1e-12 and epsilon >= 0.0):
        raise MergeError(
            f"epsilon: density - epsilon and density + epsilon must be in (0, 1]; got density "
            f"{density:g}, epsilon {epsilon:g}. Make epsilon smaller."
        )
    if num_columns < 2:
        return torch.full((num_columns,), density, dtype=torch.float64)
    rank = torch.arange(num_columns, dtype=torch.float64) / (num_columns - 1)
    return (density + epsilon - 2.0 * epsilon * rank).clamp(max=1.0)


def prune_rows_(
    rows: Float32[Tensor, "rows columns"],
    *,
    density: float,
    epsilon: float,
    rescale: bool,
    seed: int,
    tensor: str,
    expert: str,
    start: int = 0,
) -> None:
    """Drop entries at random by their rank in the row, in place.

    Among equal magnitudes the lower index counts as the larger, so that the result does not
    depend on the device. Density 1 keeps everything, whatever epsilon.

    Args:
        rows: Whole rows of a task vector, contiguous; changed.
        density: Mean keep probability, in (0, 1].
        epsilon: Half the span of the keep probabilities; see `rank_probabilities`.
        rescale: Whether each kept entry is divided by its keep probability.
        seed: The recipe's seed.
        tensor: Tensor name.
        expert: Expert name.
        start: Flat index of the first entry in the whole tensor.

    Raises:
        MergeError: If an entry is not finite, dropped or not; or a probability is outside
            (0, 1].
    """
    if not bool(torch.isfinite(rows).all()):
        raise MergeError(
            f"tensor '{tensor}', expert '{expert}': entries must be finite; got NaN or infinite "
            f"ones. Check the checkpoint."
        )
    if density == 1.0 or rows.numel() == 0:
        return
    by_rank = rank_probabilities(rows.shape[1], density=density, epsilon=epsilon)
    order = columns_by_magnitude(rows)
    limits = _by_entry(keep_limits(by_rank).to(rows.device), order)
    bits = keep_bits_within(seed, tensor, expert, start, limits.flatten())
    rows.view(torch.int32).bitwise_and_(bits.view_as(rows))
    if rescale:
        rows.mul_(_by_entry(by_rank.reciprocal().to(rows.device, torch.float32), order))


def _by_entry(by_rank: Tensor, order: Tensor) -> Tensor:
    return torch.empty_like(order, dtype=by_rank.dtype).scatter_(
        1, order, by_rank.expand(order.shape)
    )
