"""The report while a search runs: written again when there is something new, at little cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safemerge.files import disk_errors, replace_file
from safemerge.records import TrialRecord
from safemerge.reports.html import render_html
from safemerge.reports.run import Run
from safemerge.study_document import StudyDocument

SHARE = 0.01
"""Most of the driver's time that goes into the page."""
LEAST_S = 5.0
"""Least time between two pages, in seconds."""


class LivePage:
    """Writes ``report.html`` of a run that is being searched; figures are left to the end.

    The time to draw and write a page sets when the next may be: a page that took 0.2 s is
    followed by none for 20 s. A page that cannot be drawn or written is said once, and the search
    continues without.

    Args:
        folder: The run's folder.
        document: Of the run's store.
        say: Takes a line if the page cannot be written.
        clock: Seconds of a clock that never goes back.
    """

    def __init__(
        self,
        folder: Path,
        document: StudyDocument,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._document = folder, document
        self._say, self._clock = say, clock
        self._pause, self._next = LEAST_S, clock()
        self._written, self._works = -1, True
        self.spent_s = 0.0
        """Seconds that went into pages so far."""

    def offer(self, trials: Sequence[TrialRecord]) -> bool:
        """Write the page if trials are new and a page is due; return whether it was written.

        Args:
            trials: Every trial that ended, in that order.
        """
        begun = self._clock()
        if not self._works or len(trials) == self._written or begun < self._next:
            return False
        self._write(trials, is_live=True)
        cost = self._clock() - begun
        self.spent_s += cost
        self._pause = max(LEAST_S, cost * (1 - SHARE) / SHARE)
        self._next = self._clock() + self._pause
        return self._works

    def stop(self, trials: Sequence[TrialRecord]) -> None:
        """Write a page that does not refresh itself: of a search that ended early."""
        if self._works and self._written >= 0:
            self._write(trials, is_live=False)

    def _write(self, trials: Sequence[TrialRecord], *, is_live: bool) -> None:
        run = Run(
            folder=self._folder,
            spec=self._document.config,
            study_digest=self._document.digest,
            provenance=self._document.provenance,
            trials=tuple(trials),
            front=None,
        )
        try:
            content = render_html(run, refresh_s=self._pause if is_live else None)
            with disk_errors(self._folder):
                replace_file(self._folder / "report.html", content)
        except Exception as error:  # noqa: BLE001 - a border: no page may end a search
            self._works = False
            self._say(f"report.html is not kept up to date: {error}")
        self._written = len(trials)
