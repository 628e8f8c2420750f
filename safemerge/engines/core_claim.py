"""Each engine's own share of a machine's CPU cores.

vLLM's automatic binding puts two engines of one machine on the same cores. Engines therefore
claim cores through locked files: the kernel drops a lock when its process ends, however it ends,
so no claim outlives its engine.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO


class CoreClaim:
    """Cores held by this process until `release` or its end.

    Args:
        count: Cores wanted, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._locks: list[IO[str]] = []
        self.cores: tuple[int, ...] = ()
        folder = Path(tempfile.gettempdir()) / f"safemerge-cores-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        cores = []
        for core in sorted(os.sched_getaffinity(0)):
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
