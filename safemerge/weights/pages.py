"""Pages of memory-mapped weights: fetched before they are needed, let go after use.

Both are hints: on other systems than Linux, and for memory that is no file's, nothing is done.
"""

import ctypes
import mmap
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

_DONTNEED, _POPULATE_READ, _WILLNEED = 4, 22, 3
"""Advice numbers of Linux, the same on every architecture we run on."""


class Mapping(NamedTuple):
    """A run of addresses at which a file is mapped."""

    start: int
    stop: int


def mappings_of(path: Path) -> tuple[Mapping, ...]:
    """Return where this process has a file mapped; nothing on other systems than Linux.

    Args:
        path: Any file.

    Returns:
        Runs of addresses, rising.
    """
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    name, found = str(path.resolve()), []
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == name:
            start, stop = fields[0].split("-")
            found.append(Mapping(int(start, 16), int(stop, 16)))
    return tuple(found)


def fetch(tensor: Tensor) -> None:
    """Bring a tensor's pages into memory, so that reading it later does not wait."""
    start, length = _pages(tensor, inside=False)
    if not _advise(start, length, _POPULATE_READ):
        _advise(start, length, _WILLNEED)


def release(tensor: Tensor, mappings: tuple[Mapping, ...]) -> None:
    """Let a tensor's pages go from this process; the file, and its copy in the cache, stay.

    Only whole pages inside the mappings are let go: elsewhere that would clear the memory.

    Args:
        tensor: A view of a memory map that is never written to.
        mappings: Where its file is mapped, from `mappings_of`.
    """
    start, length = _pages(tensor, inside=True)
    if any(start >= place.start and start + length <= place.stop for place in mappings):
        _advise(start, length, _DONTNEED)


def _pages(tensor: Tensor, *, inside: bool) -> tuple[int, int]:
    size = mmap.PAGESIZE
    first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    start = -(-first // size) * size if inside else first // size * size
    stop = last // size * size if inside else -(-last // size) * size
    return start, max(0, stop - start)


def _advise(start: int, length: int, advice: int) -> bool:
    library = _library()
    if library is None or length == 0:
        return True
    done: int = library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)
    return done == 0


@lru_cache(maxsize=1)
def _library() -> Any:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
