"""The live view of a search on a terminal: progress, time left, pace, replicas, best points."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from safemerge.api.progress import duration
from safemerge.api.state import SearchState
from safemerge.commands.console import Console

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_POINTS = 6
"""Points of the front that the view lists."""


class LiveView(Console):
    """A console that keeps the state of the search below its lines."""

    def __init__(self) -> None:
        super().__init__()
        self._state: SearchState | None = None
        self._told = time.monotonic()

    def watch(self, state: SearchState) -> None:
        """Show a state from now on."""
        self._state, self._told = state, time.monotonic()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the view for a block; lines that are printed scroll above it."""
        from rich.console import Console as RichConsole
        from rich.live import Live

        with Live(
            get_renderable=self.renderable,
            console=RichConsole(),
            refresh_per_second=2,
            transient=True,
            vertical_overflow="crop",
        ):
            yield

    def renderable(self) -> RenderableType:
        """Return what is shown now."""
        from rich.text import Text

        if self._state is None:
            return Text("")
        return Text("\n".join(view_lines(self._state, time.monotonic() - self._told)))


def view_lines(state: SearchState, since_s: float = 0.0, *, width: int = 80) -> list[str]:
    """Return the view's lines, each within a width.

    Args:
        state: The search.
        since_s: Seconds since it was that.
        width: Columns.
    """
    share = state.done / state.total if state.total else 0.0
    room = width - 2 - len(head := f" {state.done} of {state.total} trials, {share:.0%}")
    full = round(share * room)
    bar = "\u2588" * full + "\u00b7" * (room - full)
    lines = ["\u2500" * width, f"[{bar}]{head}"]
    pieces = []
    if state.seconds_left is not None and state.seconds_each is not None:
        left = max(0.0, state.seconds_left - since_s)
        pieces.append(f"about {duration(left)} left")
        pieces.append(f"{state.seconds_each:.1f} s a trial")
    if state.prompts_per_s is not None:
        pieces.append(f"{state.prompts_per_s:.1f} prompts/s")
    lines.append(", ".join(pieces) or "waiting for the first trial")
    lines.append(
        f"{state.replicas} of at most {state.most_replicas} replicas answering; "
        f"{state.infeasible} infeasible, {state.failed} failed"
    )
    lines.append(f"{len(state.best)} on the front so far (search split)")
    if state.best:
        columns = [name[-24:] for name in state.metrics]
        label = max(6, min(24, width - sum(len(name) + 2 for name in columns)))
        lines.append(f"{'':{label}}" + "".join(f"  {name}" for name in columns))
        for name, values in state.best[:MOST_POINTS]:
            cells = (f"  {v:>{len(c)}.3f}" for v, c in zip(values, columns, strict=True))
            lines.append(f"{name[:label]:<{label}}" + "".join(cells))
        if len(state.best) > MOST_POINTS:
            lines.append(f"and {len(state.best) - MOST_POINTS} more")
    return [line[:width] for line in lines]


def can_show() -> bool:
    """Whether lines go to a terminal that can be written over, and may, and has the characters."""
    loud = logging.getLogger("safemerge").isEnabledFor(logging.WARNING)
    has_blocks = "utf" in (sys.stdout.encoding or "").lower()
    return loud and has_blocks and sys.stdout.isatty()
