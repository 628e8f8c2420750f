"""A run's folder as Python values: flat records of trials and front, report, picture."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safemerge.api.declared import Recipe, StrPath, Study
from safemerge.api.pick import pick_point, published_front
from safemerge.api.place import local_folder
from safemerge.api.progress import Progress, Say
from safemerge.api.stored import check_stored
from safemerge.config.program import PROGRAMS, load_attribute
from safemerge.config.recipe import MergeRecipe
from safemerge.errors import UserError
from safemerge.files import disk_errors, replace_file
from safemerge.object_store import is_url
from safemerge.reports.run import Point
from safemerge.reports.run import load_run as read_run
from safemerge.store import RunStore

if TYPE_CHECKING:
    from safemerge.records import CandidateResult, TrialRecord
    from safemerge.reports.run import Run as StoredRun


class Picture(NamedTuple):
    """A figure on disk; a notebook shows it."""

    path: Path
    """The PNG file."""

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


class Run:
    """A search's run as its folder held it when it was read; it may be unfinished.

    Args:
        folder: E.g. ``results/demo``.

    Raises:
        UserError: If the folder holds no run.
        StudyError: If a file of it is damaged.
    """

    def __init__(self, folder: StrPath) -> None:
        self._stored: StoredRun = read_run(local_folder(folder))

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._stored.folder

    @cached_property
    def study(self) -> Study:
        """The study as it was run, every model with its folder and fingerprint."""
        return Study.of(self._stored.spec)

    @property
    def is_complete(self) -> bool:
        """Whether the front is published, and the budget spent or every recipe tried."""
        return self._stored.is_complete

    @property
    def counts(self) -> dict[str, int]:
        """Trials by outcome: ``feasible``, ``infeasible``, ``broken``, ``pruned``, ``failed``."""
        return dict(self._stored.counts)

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """Every finished trial, in the order they finished; see `trial_record` for the keys."""
        found = [trial_record(trial, trial.result) for trial in self._stored.trials]
        return _aligned(found)

    @cached_property
    def front(self) -> list[dict[str, Any]]:
        """The front, by skill: on the report split once it is published, else the search split.

        ``split`` says which; the other keys are those of `trials`.
        """
        return _aligned([_point_record(point) for point in self._stored.points])

    @cached_property
    def references(self) -> list[dict[str, Any]]:
        """Parents, the plain mean and warm starts as they are; keys as in `front`."""
        return _aligned([_point_record(point) for point in self._stored.references])

    @property
    def knee(self) -> dict[str, Any] | None:
        """The knee of the front; None if it is not published, or no point keeps every limit."""
        knee = self._stored.knee
        return None if knee is None else self._of_front(knee.number)

    @property
    def safest(self) -> dict[str, Any]:
        """The point of the published front with the least harm that keeps every limit.

        Raises:
            UserError: If the front is not published, or there is no such point.
        """
        return self._picked("safest")

    def best(self, metric: str) -> dict[str, Any]:
        """Return the point of the published front that is best in a metric and keeps every limit.

        Args:
            metric: E.g. ``gsm8k.accuracy``; its own direction counts.

        Raises:
            UserError: If the front is not published, or no point has a value of the metric.
        """
        return self._picked(f"best:{metric}")

    def recipe(self, trial: int) -> Recipe:
        """Return the recipe of any trial by its number.

        Raises:
            UserError: If there is no such trial.
        """
        for record in self._stored.trials:
            if record.number == trial:
                return Recipe.of(MergeRecipe.model_validate(record.recipe))
        raise UserError(f"{self.folder}: no such trial; got {trial}. See `Run.trials`.")

    def report(self, *, as_stored: bool = False, progress: Say | None = None) -> Path:
        """Write the report page and its figures, and return the page's path; see `report`."""
        return report(self.folder, as_stored=as_stored, progress=progress)

    def plot(self, path: StrPath | None = None) -> Picture:
        """Draw skill against harm with 95 % intervals, the front and the reference points.

        Args:
            path: PNG file to write; ``figures/front.png`` in the run's folder if left out.

        Raises:
            PreflightError: If the file cannot be written.
        """
        from safemerge.reports.canvas import figure_style, png_bytes
        from safemerge.reports.figure import draw_front

        file = self.folder / "figures" / "front.png" if path is None else Path(os.fspath(path))
        with figure_style():
            content = png_bytes(draw_front(self._stored))
        with disk_errors(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(file, content)
        return Picture(file)

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "unfinished"
        return f"Run({str(self.folder)!r}, {len(self._stored.trials)} trials, {state})"

    def _picked(self, choice: str) -> dict[str, Any]:
        front, where = published_front(self._stored), str(self.folder)
        point = pick_point(front, choice, spec=self._stored.spec, where=where)
        return self._of_front(point.number)

    def _of_front(self, number: int) -> dict[str, Any]:
        return next(item for item in self.front if item["trial"] == number)


def load_run(folder: StrPath) -> Run:
    """Read a run's folder; nothing in it is changed.

    Args:
        folder: E.g. ``results/demo`` or ``s3://bucket/results/demo``; the run may be unfinished,
            or still going on.

    Raises:
        UserError: If the folder holds no run.
        StudyError: If a file of it is damaged.
    """
    return Run(folder)


def report(folder: StrPath, *, as_stored: bool = False, progress: Say | None = None) -> Path:
    """Draw the report of a run's folder again, a search's or a program's.

    Args:
        folder: E.g. ``results/demo`` or ``s3://bucket/results/demo``.
        as_stored: Do so although data or models are no longer those that the run was made with.
        progress: Called with notices; the log if left out.

    Returns:
        The page; figures lie beside it. Both are replaced whole, at a run's URL too.

    Raises:
        UserError: If the folder holds no run.
        ChangedRunError: If data or models changed; names all of it.
        StudyError: If a file of it is damaged.
    """
    from safemerge.reports import write_report

    place = local_folder(folder)
    if RunStore(place).exists:
        check_stored(place, Progress(progress), as_stored=as_stored)
    draws = [load_attribute(program.report) for program in PROGRAMS.values() if program.report]
    drawn: Path | None = next((path for draw in draws if (path := draw(place)) is not None), None)
    drawn = drawn or write_report(place)
    if is_url(folder):
        from safemerge.remote_run import RemoteRun

        RemoteRun(str(folder)).put_drawn(place)
    return drawn


def trial_record(trial: TrialRecord, result: CandidateResult | None) -> dict[str, Any]:
    """Return a trial as one flat record, for a table such as pandas' or polars' data frame.

    Args:
        trial: The trial.
        result: Its result on either split; None for a failed or pruned trial.

    Returns:
        ``trial`` (its number), ``label``, ``role``, ``state``, ``feasible``, ``reason``,
        ``space``, ``candidate``, ``split``, ``seconds``; each metric by its full name with
        ``METRIC.low``, ``METRIC.high`` (95 % interval), ``METRIC.n`` and ``METRIC.unscored``;
        each varied value as ``params.PATH``.
    """
    record: dict[str, Any] = {
        "trial": trial.number,
        "label": trial.label,
        "role": trial.role,
        "state": trial.state,
        "feasible": trial.feasible,
        "reason": trial.reason,
        "space": trial.space,
        "candidate": trial.candidate,
        "split": None if result is None else result.split,
        "seconds": None if result is None else result.timings.total_s,
    }
    for name, estimate in ({} if result is None else result.metrics).items():
        record[name] = estimate.value
        for part in ("low", "high", "n", "unscored"):
            record[f"{name}.{part}"] = getattr(estimate, part)
    return record | {f"params.{path}": value for path, value in trial.params.items()}


def _point_record(point: Point) -> dict[str, Any]:
    return trial_record(point.trial, point.shown)


def _aligned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every record the keys of all, None where one lacks a value."""
    keys = dict.fromkeys(key for record in records for key in record)
    # Varied values last, also where trials of another space have others.
    ordered = sorted(keys, key=lambda key: key.startswith("params."))
    return [{key: record.get(key) for key in ordered} for record in records]
