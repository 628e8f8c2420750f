"""Ray Train runs in threads: their settings, their ends, what their errors say."""

import threading
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from safemerge.config.stage import WorkersSpec
from safemerge.distributed import fit
from safemerge.errors import ConfigError


class Trainer:
    """What a run was asked with; ends as told."""

    def __init__(self, worker, **settings):
        self.made.append((worker, settings))

    def fit(self):
        assert self.end.wait(10)
        if self.errors:
            raise self.errors.pop(0)


@pytest.fixture
def trainer(monkeypatch):
    found = type("Fresh", (Trainer,), {"made": [], "end": threading.Event(), "errors": []})
    monkeypatch.setattr(fit, "TorchTrainer", found)
    return found


def start(**workers):
    spec = WorkersSpec(**workers)
    config = {"spec": "{}"}
    return fit.start_fit(print, config, spec, name="train", storage=Path("/runs/a"), num_to_keep=1)


def test_a_run_goes_on_while_the_command_does_something_else(trainer):
    run = start(num_workers=2, cpus_per_worker=0.5)
    assert not run.done()
    trainer.end.set()
    assert run.result(timeout=10) is None
    ((worker, settings),) = trainer.made
    assert (worker, settings["train_loop_config"]) == (print, {"spec": "{}"})
    scaling, kept = settings["scaling_config"], settings["run_config"]
    assert (scaling.num_workers, scaling.use_gpu) == (2, False)
    assert scaling.resources_per_worker == {"CPU": 0.5}
    assert (kept.name, kept.storage_path) == ("train", "/runs/a")
    assert kept.checkpoint_config.num_to_keep == 1


def test_gpus_are_asked_for_where_workers_have_some(trainer):
    trainer.end.set()
    start(gpus_per_worker=1, cpus_per_worker=4).result(timeout=10)
    scaling = trainer.made[0][1]["scaling_config"]
    assert scaling.use_gpu
    assert scaling.resources_per_worker == {"CPU": 4, "GPU": 1}


def test_an_error_waits_for_who_asks(trainer):
    trainer.errors = [RuntimeError("worker died")]
    trainer.end.set()
    run = start()
    assert str(run.exception(timeout=10)) == "worker died"


def lost(*others):
    died = WorkerHealthCheckFailedError("no answer", failure=ActorDiedError())
    failures = dict(enumerate([died, *others]))
    return WorkerGroupError("the worker died", failures)


def test_a_run_whose_worker_was_killed_goes_on_where_it_stopped(trainer):
    trainer.errors = [lost(RuntimeError("connection reset by peer")), lost()]
    trainer.end.set()
    assert start().result(timeout=10) is None
    runs = [made["run_config"] for _, made in trainer.made]
    assert [(run.name, run.storage_path) for run in runs] == [("train", "/runs/a")] * 3


def test_a_worker_that_is_killed_again_and_again_ends_the_run_with_the_cause(trainer):
    trainer.errors = [lost() for _ in range(9)]
    trainer.end.set()
    error = start().exception(timeout=10)
    assert len(trainer.made) == 1 + fit.WORKER_LOSSES
    assert fit.cause_of(error) == (
        "a worker's process died again and again: killed, or out of memory"
    )


def test_what_a_worker_raises_is_not_tried_again(trainer):
    trainer.errors = [WorkerGroupError("no", {0: ConfigError("lora.rank must be 8.")})]
    trainer.end.set()
    assert isinstance(start().exception(timeout=10), WorkerGroupError)
    assert len(trainer.made) == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConfigError("lora.rank must be 8."), "lora.rank must be 8."),
        (
            RuntimeError("Rank 0:\n  ...\nsafemerge.errors.ConfigError: lora.rank must be 8.\n"),
            "lora.rank must be 8.",
        ),
        (RuntimeError("Rank 0:\nValueError: no\nlast line"), "ValueError: no"),
        (RuntimeError("it stopped"), "it stopped"),
    ],
)
def test_the_cause_of_a_failed_run_is_one_line(error, expected):
    outer = RuntimeError("outer")
    outer.__cause__ = error
    assert fit.cause_of(error) == expected
    if isinstance(error, ConfigError):
        assert fit.cause_of(outer) == expected
