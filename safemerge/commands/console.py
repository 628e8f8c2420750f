"""Lines of progress on the terminal, and results in words."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safemerge.api.progress import Progress
from safemerge.records import CandidateResult, MetricEstimate

if TYPE_CHECKING:
    from safemerge.api.stage import TrainedCheckpoint


class Console(Progress):
    """Prints plain lines with the time since the command began; logs look the same."""

    def __init__(self) -> None:
        super().__init__(self._print)
        self._started = time.monotonic()

    def _print(self, line: str) -> None:
        """Print a line behind the elapsed time, at once; nothing with ``--quiet``."""
        if not logging.getLogger("safemerge").isEnabledFor(logging.WARNING):
            return
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        print(f"[{minutes:2d}:{seconds:02d}] {line}" if line else "", flush=True)

    def plain(self, text: str = "") -> None:
        """Print text as it is."""
        print(text, flush=True)


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


def trained_lines(trained: TrainedCheckpoint, kind: str) -> list[str]:
    """Return where a trained checkpoint is, and how a study names it."""
    return [
        f"checkpoint: {trained.path}",
        f"next: name it in a study, `{{name: {trained.name}, {kind}: {trained.file}}}`",
    ]
