"""``safemerge status``: how far a search is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.progress import duration
from safemerge.api.status import RunStatus, status
from safemerge.errors import SafemergeError, UserError
from safemerge.object_store import is_url
from safemerge.reports.wording import counted
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Print the state of one run, or of every run in the folder of results."""
    unread: list[str] = []
    if options.run is not None:
        found = [status(options.run)]
    else:
        found, unread = _read(_runs(options.results))
    if options.json:
        import json

        documents = [item.resolved() for item in found]
        print(json.dumps(documents[0] if options.run is not None else documents, indent=2))
    elif found:
        print("\n\n".join("\n".join(status_lines(item)) for item in found))
    if unread:
        raise UserError("\n".join(unread))


def status_lines(found: RunStatus) -> list[str]:
    """Return a run's state in lines of at most 80 columns, as far as names let them."""
    counts = ", ".join(f"{count} {name}" for name, count in found.counts.items() if count)
    lines = [f"{found.study}: {found.state}, {found.finished} of {found.total} trials"]
    if counts:
        lines.append(f"  ended      {counts}")
    if found.in_flight:
        lines.append(f"  in flight  {found.in_flight} sampled")
    if found.owner is not None:
        lines.append(f"  process    {found.owner}")
    if found.seconds_per_trial is not None:
        left = found.seconds_left or 0.0
        about = f", about {duration(left)} left for the trials" if left > 0 else ""
        lines.append(f"  pace       {found.seconds_per_trial:.1f} s a trial{about}")
    if found.last_finished_at is not None:
        lines.append(f"  last end   {found.last_finished_at[:19].replace('T', ' ')} UTC")
    split = "report split, published" if found.published else "search split, so far"
    lines.append(f"  front      {counted(len(found.front), 'point')} ({split})")
    for point in found.front:
        values = "  ".join(
            f"{name} {'-' if value is None else format(value, '.3f')}"
            for name, value in point.objectives.items()
        )
        lines.append(f"    {point.label}{' [knee]' if point.knee else ''}: {values}")
    if found.state == "stopped":
        lines.append("  next       safemerge search STUDY.yaml --resume")
    elif found.state == "finished":
        lines.append(f"  next       safemerge export {found.folder} --pick knee OUT_DIR")
    return lines


def _read(folders: Sequence[Path | str]) -> tuple[list[RunStatus], list[str]]:
    """Return the states of runs, and a message of each that cannot be read."""
    found, unread = [], []
    for folder in folders:
        try:
            found.append(status(folder))
        except SafemergeError as error:
            unread.append(str(error))
    return found, unread


def _runs(given: str) -> Sequence[Path | str]:
    if is_url(given):
        from safemerge.remote_run import remote_runs

        return remote_runs(given)
    results = Path(given)
    found = sorted(path for path in results.glob("*") if RunStore(path).exists)
    if not found:
        raise UserError(
            f"{results}: must hold runs of `safemerge search`; got none. Name a run's folder, or "
            "the folder of results with --results."
        )
    return found
