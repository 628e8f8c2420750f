"""Magnitude ranks of a task vector's entries within their rows, found once for an ingredient."""

from collections.abc import Hashable
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int64
from torch import Tensor

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
