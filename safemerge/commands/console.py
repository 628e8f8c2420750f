"""Lines of progress on the terminal: what is done, how far, about how long."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

from safemerge.records import CandidateResult, MetricEstimate


class Console:
    """Prints plain lines with the time since the command began; logs look the same."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._stage_started: dict[str, tuple[float, int]] = {}
        self._stage_said: dict[str, float] = {}

    def say(self, line: str = "") -> None:
        """Print a line behind the elapsed time, at once."""
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"[{minutes:2d}:{seconds:02d}] {line}" if line else "", flush=True)

    def plain(self, text: str = "") -> None:
        """Print text as it is."""
        print(text, flush=True)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is about every ten seconds, and its end."""
        now = time.monotonic()
        if done < total and now - self._stage_said.get(stage, now - 100.0) < 10.0:
            return
        self._stage_said[stage] = now
        self.say(f"{stage}: {done}/{total}")

    def training_step(self, stage: str, metrics: Any, steps: int) -> None:
        """Show a training stage's progress; see `stage_step`."""
        self.stage_step(stage, metrics.step, steps, f"loss {metrics.loss:.3f}")

    def stage_step(self, stage: str, step: int, steps: int, told: str) -> None:
        """Show a stage's progress about every ten seconds, and its last step.

        The time left goes by the steps of this command alone: a resumed stage begins further on.
        """
        now = time.monotonic()
        started, first_step = self._stage_started.setdefault(stage, (now, step))
        done = step == steps
        if not done and now - self._stage_said.get(stage, started - 100.0) < 10.0:
            return
        self._stage_said[stage] = now
        timed = step - first_step
        left = (now - started) / max(1, timed) * (steps - step)
        about = "" if timed < 2 or done else f", about {duration(left)} left"
        self.say(f"{stage}: step {step}/{steps}, {told}{about}")


def resume_command(command: str, file: str, results: str, more: Sequence[str] = ()) -> str:
    """Return the command that resumes a run, for messages.

    Args:
        command: E.g. ``search``.
        file: As given.
        results: As given with ``--results``.
        more: Further options, as given.
    """
    where = [] if results == "results" else ["--results", results]
    return shlex.join(["safemerge", command, file, *where, *more, "--resume"])


def duration(seconds: float) -> str:
    """Return seconds in words, e.g. ``2 min 5 s``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def estimate_text(estimate: MetricEstimate | None) -> str:
    """Return an estimate with its interval, e.g. ``0.81 [0.72, 0.88] (n=80)``."""
    if estimate is None or estimate.value is None:
        return "unscored"
    unscored = f", {estimate.unscored} unscored" if estimate.unscored else ""
    interval = f"[{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f} {interval} (n={estimate.n}{unscored})"


def result_lines(result: CandidateResult) -> list[str]:
    """Return a candidate's metrics, one line each."""
    width = max((len(name) for name in result.metrics), default=0)
    lines = [f"{name:<{width}}  {estimate_text(e)}" for name, e in result.metrics.items()]
    if result.broken:
        lines.append(f"broken: {result.broken}")
    return lines
