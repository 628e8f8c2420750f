"""Guarded memory maps: a file that is cut while it is mapped must not end the process.

Reading a page that a mapped file has lost is a SIGBUS, whose default is the end of the process.
For guarded mappings a handler puts zeros there instead; whoever reads them must look, afterwards,
whether the file is still what it was. See mmap(2) and sigaction(2).
"""

import ctypes
import mmap
import sys
from functools import lru_cache
from threading import RLock
from typing import Any

_SIGBUS, _SA_SIGINFO, _SA_ONSTACK = 7, 4, 0x08000000
_lock = RLock()
"""Re-entrant: a mapping may be released by the garbage collector, in the middle of anything."""


class _Action(ctypes.Structure):
    """``struct sigaction`` of the C libraries of 64-bit Linux."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_char * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_former = _Action()


def guard(start: int, length: int) -> bool:
    """Guard a mapping until it is released.

    Args:
        start: Its first address.
        length: Its length in bytes.

    Returns:
        Whether it is guarded: False without numba, on other systems than 64-bit Linux, and where
        too many are guarded already. The file must then not be mapped.
    """
    compiled = _compiled()
    if compiled is None:
        return False
    with _lock:
        _install(compiled)
        ranges, used = _ranges(compiled), int(compiled.STATE[0])
        free = (ranges[: used + 1, 1] == 0).nonzero()[0]
        if not free.size:
            return False
        # The handler may run in between: the range is empty until it has its stop.
        ranges[free[0], [0, 2]] = start, 0
        ranges[free[0], 1] = start + -(-length // mmap.PAGESIZE) * mmap.PAGESIZE
        compiled.STATE[0] = max(used, int(free[0]) + 1)
    return True


def was_cut(start: int) -> bool:
    """Tell whether zeros were put into a guarded mapping, by its first address."""
    with _lock:
        compiled = _compiled()
        return bool(_ranges(compiled)[_found(compiled, start), 2].any())


def release(start: int) -> None:
    """Guard the mapping at an address no more; it must be released before it is unmapped."""
    with _lock:
        compiled = _compiled()
        _ranges(compiled)[_found(compiled, start), 1] = 0


def _ranges(compiled: Any) -> Any:
    """A row a range, see `bus_handler.RANGE`."""
    return compiled.STATE[compiled.HEADER :].reshape(-1, compiled.RANGE)


def _found(compiled: Any, start: int) -> Any:
    """Which range begins at an address; none if it was released."""
    ranges = _ranges(compiled)
    return (ranges[:, 0] == start) & (ranges[:, 1] > start)


@lru_cache(maxsize=1)
def _compiled() -> Any:
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    try:
        from safemerge.weights import bus_handler
    except (ImportError, RuntimeError):
        # NOTE: numba raises RuntimeError where it finds no folder to keep compiled code in.
        return None
    return bus_handler


def _install(compiled: Any) -> None:
    """Make the handler the process's, unless it is; another library may have replaced it."""
    library = ctypes.CDLL(None, use_errno=True)
    current = _Action()
    library.sigaction(_SIGBUS, None, ctypes.byref(current))
    if current.handler == compiled.on_bus_error.address:
        return
    compiled.STATE[1] = ctypes.addressof(_former)
    compiled.STATE[2] = mmap.PAGESIZE
    ctypes.memmove(ctypes.byref(_former), ctypes.byref(current), ctypes.sizeof(_Action))
    own = _Action(handler=compiled.on_bus_error.address, flags=_SA_SIGINFO | _SA_ONSTACK)
    library.sigaction(_SIGBUS, ctypes.byref(own), None)
