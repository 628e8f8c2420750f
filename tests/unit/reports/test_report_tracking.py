"""Trackers, by their own clients: what they hold is read back."""

import glob
import importlib.util
import struct
import time
from types import SimpleNamespace

import pytest
import synthetic_run as synthetic

from safemerge.cli import main
from safemerge.errors import UserError
from safemerge.front import assemble_front
from safemerge.reports import tracking
from safemerge.reports.tracking import Tracking, check_trackers
from safemerge.store import RunStore

COUNTS = {"search": 10, "report": 12}


def has(name):
    return importlib.util.find_spec(name) is not None


@pytest.fixture
def offline(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(tmp_path):
    made = synthetic.Synthetic(counts=COUNTS)
    spec = synthetic.make_spec(num_trials=8)
    store = RunStore(tmp_path / "demo").create(spec)
    trials, rates = synthetic.make_trials(8, synthetic=made)
    results = synthetic.report_results(spec, trials, rates, synthetic=made)
    front = assemble_front(spec, trials, results, study_digest=store.study().digest)
    report = store.folder / "report.html"
    report.write_text("the report")
    return SimpleNamespace(store=store, trials=trials, front=front, report=report)


def tracked(run, name, said):
    with Tracking([name], say=said.append) as found:
        found.begin(run.store.folder, run.store.study())
        for trial in run.trials:
            found.trial(trial)
        found.publish(run.front, run.report)
    return run.store.folder / "tracking" / name


def events(folder):
    """Scalars of TensorBoard's event files, by (tag, step)."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in glob.glob(f"{folder}/events.*"):
        with open(path, "rb") as file:
            while head := file.read(12):
                (length,) = struct.unpack("<Q", head[:8])
                event = Event.FromString(file.read(length))
                file.read(4)
                for value in event.summary.value:
                    found[value.tag, event.step] = value
    return found


@pytest.mark.skipif(not has("tensorboardX"), reason="needs tensorboardX")
def test_tensorboard_holds_parameters_metrics_intervals_and_the_front(run, offline):
    said = []
    found = events(tracked(run, "tensorboard", said))
    assert said == []
    trial = next(item for item in run.trials if item.role == "sampled")
    estimate = trial.result.metrics["unsafe.harmful_score"]
    at = {tag: value.simple_value for (tag, step), value in found.items() if step == trial.number}
    for name, value in (
        ("search/unsafe.harmful_score", estimate.value),
        ("search/unsafe.harmful_score.low", estimate.low),
        ("search/unsafe.harmful_score.high", estimate.high),
        ("params/method.density", trial.params["method.density"]),
    ):
        assert at[name] == pytest.approx(value, abs=1e-6)  # float32
    point = run.front.points[0]
    value = found["report/skill", point.number].simple_value
    assert value == pytest.approx(point.report.metrics["skill"].value, abs=1e-6)
    hypervolume = found["front/hypervolume_report", 0].simple_value
    assert hypervolume == pytest.approx(run.front.hypervolume_report, abs=1e-6)


@pytest.mark.skipif(not has("tensorboardX"), reason="needs tensorboardX")
def test_a_broken_candidate_has_no_values(run, offline):
    made = synthetic.Synthetic(counts=COUNTS)
    result = made.result(90, "search", broken="loops", skill=0.6, harm=0.0, refusal=0.0)
    run.trials.append(synthetic.make_trial(90, result))
    found = events(tracked(run, "tensorboard", []))
    assert {tag for tag, step in found if step == 90} == {"feasible"}


@pytest.mark.skipif(not has("mlflow"), reason="needs mlflow")
def test_mlflow_holds_a_run_a_trial_and_the_report_and_a_resumed_search_is_the_same_run(
    run, offline
):
    import mlflow

    said = []
    tracked(run, "mlflow", said)
    folder = tracked(run, "mlflow", said)
    assert said == []
    client = mlflow.MlflowClient(tracking_uri=folder.resolve().as_uri())
    experiment = client.get_experiment_by_name("demo").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    (whole,) = (item for item in runs if "safemerge.study_digest" in item.data.tags)
    assert whole.info.status == "FINISHED"
    assert whole.data.metrics["front/hypervolume_report"] == run.front.hypervolume_report
    assert [item.path for item in client.list_artifacts(whole.info.run_id)] == ["report.html"]
    children = [item for item in runs if "mlflow.parentRunId" in item.data.tags]
    assert len(children) == 2 * len(run.trials)
    trial = next(item for item in run.trials if item.role == "sampled" and item.result)
    own = next(item for item in children if item.info.run_name == trial.label)
    assert own.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert float(own.data.params["method.density"]) == trial.params["method.density"]
    estimate = trial.result.metrics["skill"]
    assert own.data.metrics["search/skill"] == estimate.value
    assert own.data.metrics["search/skill.low"] == estimate.low
    failed = [item for item in children if item.data.tags["state"] == "FAIL"]
    assert {item.info.status for item in failed} <= {"FAILED"}


@pytest.mark.skipif(not has("mlflow"), reason="needs mlflow")
def test_mlflow_takes_a_trial_in_four_requests_however_many_metrics_it_has(
    run, offline, monkeypatch
):
    from mlflow import MlflowClient

    asked = []

    def counted(name, act):
        def counts(self, *given, **options):
            asked.append(name)
            return act(self, *given, **options)

        return counts

    for name in ("create_run", "log_batch", "log_param", "log_metric", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, counted(name, getattr(MlflowClient, name)))
    with Tracking(["mlflow"], say=asked.append) as found:
        found.begin(run.store.folder, run.store.study())
        asked.clear()
        found.trial(next(item for item in run.trials if item.role == "sampled" and item.result))
        assert asked == ["create_run", "log_batch", "log_batch", "set_terminated"]


@pytest.mark.skipif(not has("wandb"), reason="needs wandb")
def test_wandb_writes_offline_files(run, offline):
    said = []
    folder = tracked(run, "wandb", said)
    assert said == []
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    assert b"search/unsafe.harmful_score" in file.read_bytes()
    # wandb's service process writes the artifact's record after `finish` has returned.
    until = time.monotonic() + 30
    while b"report.html" not in file.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)
    staged = [path.read_text() for path in folder.rglob("artifacts/staging/*") if path.is_file()]
    assert staged == ["the report"]


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(run, monkeypatch):
    logged = []

    class Fails:
        def __init__(self, folder, document):
            pass

        def trial(self, record):
            raise ConnectionError("server is gone")

        front = finish = trial

    class Works(Fails):
        def trial(self, record):
            logged.append(record)

        front = trial

        def finish(self, report):
            logged.append(report)

    monkeypatch.setattr(tracking, "KINDS", {"mlflow": Fails, "tensorboard": Works})
    said = []
    with Tracking(["mlflow", "tensorboard"], say=said.append) as found:
        found.begin(run.store.folder, run.store.study())
        found.trial(run.trials[0])
        found.trial(run.trials[1])
        found.publish(run.front, run.report)
    assert logged == [*run.trials[:2], run.front, run.report]
    (line,) = said
    assert line == ("tracking: mlflow failed and is left out from here on: server is gone")


def test_a_missing_client_is_refused_with_what_installs_it(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tracking, "import_module", missing)
    with pytest.raises(UserError, match=r"mlflow needs the package mlflow.*safemerge\[tracking\]"):
        check_trackers(["mlflow"])


def test_an_unknown_tracker_is_refused_by_the_study(tmp_path, capsys):
    import yaml

    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(synthetic.study_document(tracking=["tensorbord"])))
    assert main(["validate", str(path)]) == 2
    assert "tracking" in capsys.readouterr().err


def test_who_tracks_makes_no_other_study():
    from safemerge.config.identity import study_identity

    plain, followed = synthetic.make_spec(), synthetic.make_spec(tracking=["mlflow"])
    assert study_identity(plain) == study_identity(followed)
    assert "tracking" not in plain.resolved()
