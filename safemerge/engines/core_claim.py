"""Each engine's own share of a machine's CPU cores.

vLLM's automatic binding puts two engines of one machine on the same cores. Engines therefore
claim cores through locked files: the kernel drops a lock when its process ends, however it ends,
so no claim outlives its engine. Claims are made one after the other, so that of two engines that
start at once, neither misses cores that the other only tried and gave back. Where the system
binds no process to cores (macOS), nothing is claimed. The transformers engine binds no threads,
and claims none.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO


def bind_process(cores: Iterable[int]) -> None:
    """Bind every thread of this process, and what they start later, to cores.

    Does nothing where the system binds no process to cores (macOS).
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    wanted = set(cores)
    for thread in Path("/proc/self/task").iterdir():
        # A thread may end between the two lines.
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), wanted)


class CoreClaim:
    """Cores held by this process until `release` or its end.

    If fewer than wanted are free, or the system binds no process to cores, none is held.

    Args:
        count: Cores wanted, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._locks: list[IO[str]] = []
        self.cores: tuple[int, ...] = ()
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if len(allowed) < count:
            return
        folder = Path(tempfile.gettempdir()) / f"safemerge-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / "claiming.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            self._claim(folder, sorted(allowed), count)

    def _claim(self, folder: Path, allowed: Sequence[int], count: int) -> None:
        cores = []
        for core in allowed:
            lock = (folder / f"core-{core}.lock").open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            self._locks.append(lock)
            cores.append(core)
            if len(cores) == count:
                break
        if len(cores) < count:
            # Fewer free cores than wanted: share all of them rather than crowd a few.
            self.release()
            return
        self.cores = tuple(cores)

    @property
    def cpu_ids(self) -> str | None:
        """The cores as vLLM's binding list, e.g. ``0,1``; None if too few were free."""
        return ",".join(map(str, self.cores)) or None

    def release(self) -> None:
        """Give the cores back."""
        for lock in self._locks:
            lock.close()
        self._locks, self.cores = [], ()
