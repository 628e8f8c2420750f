"""Progress of long work as lines of text: to a function of the caller's, else to the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Say = Callable[[str], None]
"""Takes one line of progress, e.g. `print`."""

EVERY_S = 10.0
"""Least time between two lines about the same stage, in seconds."""


class Progress:
    """Lines of progress; of a stage's many steps, one about every ten seconds.

    Args:
        say: Called with every line; the logger ``safemerge`` (level INFO) if left out.
    """

    def __init__(self, say: Say | None = None) -> None:
        self._sinks: list[Say] = [say or logging.getLogger("safemerge").info]
        self._stage_started: dict[str, tuple[float, int]] = {}
        self._stage_said: dict[str, float] = {}

    def say(self, line: str) -> None:
        """Say a line."""
        for sink in self._sinks:
            sink(line)

    @contextmanager
    def also(self, sink: Say) -> Iterator[None]:
        """Say every line of a block there too, e.g. in a file."""
        self._sinks.append(sink)
        try:
            yield
        finally:
            self._sinks.remove(sink)

    def count(self, stage: str, done: int, total: int) -> None:
        """Say how far a stage is, about every ten seconds and at its end."""
        if self._is_due(stage, at_end=done >= total):
            self.say(f"{stage}: {done}/{total}")

    def training_step(self, stage: str, metrics: Any, steps: int) -> None:
        """Say how far a training stage is; see `stage_step`."""
        self.stage_step(stage, metrics.step, steps, f"loss {metrics.loss:.3f}")

    def stage_step(self, stage: str, step: int, steps: int, state: str) -> None:
        """Say how far a stage is, about every ten seconds and at its last step.

        The time left goes by the steps of this call alone: a resumed stage begins further on.

        Args:
            stage: Its name.
            step: Steps done.
            steps: All of them.
            state: What to say of the step, e.g. its loss.
        """
        now = time.monotonic()
        started, first_step = self._stage_started.setdefault(stage, (now, step))
        if not self._is_due(stage, at_end=step == steps):
            return
        timed = step - first_step
        left = (now - started) / max(1, timed) * (steps - step)
        about = "" if timed < 2 or step == steps else f", about {duration(left)} left"
        self.say(f"{stage}: step {step}/{steps}, {state}{about}")

    def _is_due(self, stage: str, *, at_end: bool) -> bool:
        now = time.monotonic()
        if not at_end and now - self._stage_said.get(stage, now - 10 * EVERY_S) < EVERY_S:
            return False
        self._stage_said[stage] = now
        return True


class Pace:
    """Counts what is done of a total, and estimates the time left at the pace of this call.

    Args:
        total: All that is to be done.
        done: How much of it an earlier call has done.
    """

    def __init__(self, total: int, *, done: int = 0) -> None:
        self._total, self._before, self._done = total, done, done
        self._started = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of a block out of the pace."""
        began = time.monotonic()
        yield
        self._started += time.monotonic() - began

    @property
    def done(self) -> int:
        """What is done, earlier calls included."""
        return self._done

    @property
    def total(self) -> int:
        """All that is to be done, as far as is known."""
        return max(self._total, self._done)

    @property
    def seconds_each(self) -> float | None:
        """Seconds from one to the next in this call; None before the first."""
        timed = self._done - self._before
        return (time.monotonic() - self._started) / timed if timed else None

    def step(self) -> tuple[str, str]:
        """Count one more; return e.g. ``[3/25]`` and ``, about 2 min 5 s left``."""
        self._done += 1
        timed, left = self._done - self._before, self._total - self._done
        seconds = (time.monotonic() - self._started) / timed * left
        about = f", about {duration(seconds)} left" if left > 0 else ""
        return f"[{self._done}/{max(self._total, self._done)}]", about


def duration(seconds: float) -> str:
    """Return seconds in words, e.g. ``2 min 5 s``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
