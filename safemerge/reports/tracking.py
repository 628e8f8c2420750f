"""Runs in other people's trackers: TensorBoard, MLflow and Weights & Biases, by their own clients.

Every trial goes there as it ends: its parameters, and each metric with its 95 % interval; the
published front follows, and the report as an artifact. Without a server of the user's they write
into the run's folder and need no network.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

from safemerge.config.extra import advice
from safemerge.errors import UserError
from safemerge.records import CandidateResult, Front, TrialRecord
from safemerge.study_document import StudyDocument

FOLDER = "tracking"
"""Where trackers write, in the run's folder."""
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Importable client by tracker."""

MOST_AT_ONCE = 100
"""Parameters, and metrics, that MLflow takes in one request."""


class Tracker(Protocol):
    """What a run tells a tracker."""

    def trial(self, record: TrialRecord) -> None:
        """Log a trial that ended."""

    def front(self, front: Front) -> None:
        """Log the published front."""

    def finish(self, report: Path | None) -> None:
        """Log the report, where the search came to its end, and close."""


class Tracking:
    """The trackers of a run. One that fails is named once and left; the search continues.

    Args:
        names: Of `PACKAGES`.
        say: Takes a line about a tracker that fails.
    """

    def __init__(self, names: Sequence[str], *, say: Callable[[str], None]) -> None:
        self._names, self._say = list(names), say
        self._trackers: dict[str, Tracker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(None)

    def begin(self, folder: Path, document: StudyDocument) -> None:
        """Start every tracker.

        Args:
            folder: The run's folder.
            document: Of the run's store.
        """
        for name in self._names:
            place = folder / FOLDER / name
            try:
                place.mkdir(parents=True, exist_ok=True)
                self._trackers[name] = KINDS[name](place, document)
            except Exception as error:  # noqa: BLE001 - a border: a client, its files, its server
                self._say(f"tracking: {name} is left out: {error}")

    def trial(self, record: TrialRecord) -> None:
        """Log a trial that ended."""
        self._each(lambda tracker: tracker.trial(record))

    def publish(self, front: Front | None, report: Path) -> None:
        """Log the published front and the report, and close."""
        if front is not None:
            self._each(lambda tracker: tracker.front(front))
        self._close(report)

    def _close(self, report: Path | None) -> None:
        self._each(lambda tracker: tracker.finish(report))
        self._trackers.clear()

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # noqa: BLE001 - a border: a client, its files, its server
                del self._trackers[name]
                self._say(f"tracking: {name} failed and is left out from here on: {error}")


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose client is not installed.

    Raises:
        UserError: Names the package and how it is installed.
    """
    for name in names:
        try:
            import_module(PACKAGES[name])
        except ImportError as error:
            raise UserError(
                f"tracking: {name} needs the package {PACKAGES[name]}; got {error}. "
                f"{advice(PACKAGES[name])}"
            ) from None


class TensorBoard:
    """One event file a call: a scalar a metric and end of interval, the trial number as step."""

    def __init__(self, folder: Path, document: StudyDocument) -> None:
        self._writer = import_module("tensorboardX").SummaryWriter(str(folder))
        self._writer.add_text("study", f"{document.study}, digest {document.digest}")

    def trial(self, record: TrialRecord) -> None:
        """Log a trial that ended."""
        numbers = {f"params/{name}": value for name, value in _numbers(record.params)}
        for name, value in {**numbers, **_values("search", record.result)}.items():
            self._writer.add_scalar(name, value, record.number)
        self._writer.add_scalar("feasible", float(record.feasible), record.number)
        self._writer.flush()

    def front(self, front: Front) -> None:
        """Log the published front."""
        for point in front.points:
            for name, value in _values("report", point.report).items():
                self._writer.add_scalar(name, value, point.number)
        for name, value in _summary(front).items():
            self._writer.add_scalar(name, value, 0)
        self._writer.flush()

    def finish(self, report: Path | None) -> None:
        """Name the report, which TensorBoard has no place for, and close."""
        if report is not None:
            self._writer.add_text("report", str(report.resolve()))
        self._writer.close()


class MLflow:
    """An experiment a study, a run a search, a nested run a trial.

    ``MLFLOW_TRACKING_URI`` names a server; without it a file store is written.
    """

    def __init__(self, folder: Path, document: StudyDocument) -> None:
        # NOTE: a file store is what needs no database and no server; MLflow would rather not.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        # A server that does not answer must not hold the search up: MLflow would try for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._module = import_module("mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or folder.resolve().as_uri()
        self._client = self._module.MlflowClient(tracking_uri=uri)
        found = self._client.get_experiment_by_name(document.study)
        self._experiment = (
            found.experiment_id if found else self._client.create_experiment(document.study)
        )
        self._run = self._run_of(document)

    def trial(self, record: TrialRecord) -> None:
        """Log a trial that ended."""
        tags = {
            "mlflow.parentRunId": self._run,
            "state": record.state,
            "role": record.role,
            "candidate": record.candidate,
            **({"reason": record.reason[:500]} if record.reason else {}),
        }
        run = self._client.create_run(
            self._experiment, run_name=record.label, tags=tags
        ).info.run_id
        values = _values("search", record.result)
        self._log(run, values, params=record.params)
        self._log(self._run, values, step=record.number)
        state = "FAILED" if record.state == "FAIL" else "FINISHED"
        self._client.set_terminated(run, status=state)

    def front(self, front: Front) -> None:
        """Log the published front."""
        for point in front.points:
            self._log(self._run, _values("report", point.report), step=point.number)
        self._log(self._run, _summary(front))

    def finish(self, report: Path | None) -> None:
        """Log the report as an artifact, and close."""
        if report is not None:
            self._client.log_artifact(self._run, str(report))
        self._client.set_terminated(self._run, status="FINISHED" if report else "KILLED")

    def _log(
        self,
        run: str,
        values: Mapping[str, float],
        *,
        step: int = 0,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """Log values and parameters in as few requests as a server takes."""
        entities, now = self._module.entities, int(1000 * time.time())
        metrics = [entities.Metric(name, value, now, step) for name, value in values.items()]
        given = [entities.Param(name, str(value)) for name, value in (params or {}).items()]
        for first in range(0, max(len(metrics), len(given)), MOST_AT_ONCE):
            part = slice(first, first + MOST_AT_ONCE)
            self._client.log_batch(run, metrics=metrics[part], params=given[part])

    def _run_of(self, document: StudyDocument) -> str:
        """Find the run of a search that is resumed, else begin it."""
        found = self._client.search_runs(
            [self._experiment],
            filter_string=f"tags.`safemerge.study_digest` = '{document.digest}'",
            max_results=1,
        )
        if found:
            run = str(found[0].info.run_id)
            self._client.set_terminated(run, status="RUNNING")
            return run
        tags = {"safemerge.study_digest": document.digest}
        made = self._client.create_run(self._experiment, run_name=document.study, tags=tags)
        return str(made.info.run_id)


class WeightsAndBiases:
    """A run a search, the trial number as step; offline unless ``WANDB_MODE`` says otherwise."""

    def __init__(self, folder: Path, document: StudyDocument) -> None:
        # Where an artifact waits to be sent, which would else be the home folder.
        os.environ.setdefault("WANDB_DATA_DIR", str(folder.resolve()))
        self._module = import_module("wandb")
        self._run = self._module.init(
            project="safemerge",
            name=document.study,
            id=document.digest,
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config={"study": document.study, "digest": document.digest},
            settings=self._module.Settings(console="off", silent=True),
        )
        self._run.define_metric("trial")
        self._run.define_metric("*", step_metric="trial")

    def trial(self, record: TrialRecord) -> None:
        """Log a trial that ended."""
        params = {f"params/{name}": value for name, value in record.params.items()}
        values = _values("search", record.result)
        self._run.log({"trial": record.number, "state": record.state, **params, **values})

    def front(self, front: Front) -> None:
        """Log the published front."""
        for point in front.points:
            self._run.log({"trial": point.number, **_values("report", point.report)})
        self._run.summary.update(_summary(front))

    def finish(self, report: Path | None) -> None:
        """Log the report as an artifact, and close."""
        if report is not None:
            artifact = self._module.Artifact("report", type="report")
            artifact.add_file(str(report))
            self._run.log_artifact(artifact)
        self._run.finish(exit_code=0 if report else 1)


KINDS: dict[str, Callable[[Path, StudyDocument], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}
"""Trackers by the names that studies use."""


def _values(split: str, result: CandidateResult | None) -> dict[str, float]:
    """Values by name, ``SPLIT/METRIC``, with ``.low`` and ``.high`` ends of 95 % intervals.

    A broken candidate has none: degenerate text can look safe.
    """
    if result is None or result.broken is not None:
        return {}
    ends = {
        f"{split}/{name}{end}": value
        for name, item in result.metrics.items()
        for end, value in (("", item.value), (".low", item.low), (".high", item.high))
    }
    return {name: value for name, value in ends.items() if value is not None}


def _summary(front: Front) -> dict[str, float]:
    found = {
        "front/points": len(front.points),
        "front/knee": front.knee,
        "front/hypervolume_search": front.hypervolume_search,
        "front/hypervolume_report": front.hypervolume_report,
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _numbers(params: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in params.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)
