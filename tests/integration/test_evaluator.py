"""The evaluator on a cluster of its own: broken engines, killed replicas, nothing lost."""

import os
import signal
import sys
import threading
from contextlib import suppress

import grpc
import psutil
import pytest
from ray import cloudpickle

from safemerge.api.prepare import resolve_study
from safemerge.commands.console import Console
from safemerge.config.study import StudySpec
from safemerge.data.suite import load_suites
from safemerge.distributed import evaluator as evaluator_module
from safemerge.distributed import serving
from safemerge.distributed.cluster import ray_cluster
from safemerge.distributed.evaluator import Evaluator, EvaluatorReplica
from safemerge.distributed.search import evaluate_report_split, search_round
from safemerge.errors import CheckpointError, EngineError
from safemerge.search.study import SearchStudy
from safemerge.store import RunStore
from tests.integration.driving import PATIENCE, wait_until

pytestmark = pytest.mark.ray

APP = "safemerge-pico"

# Ray's processes can't import a test file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class BreakableReplica(EvaluatorReplica):
    """A replica whose engine can be made unable to answer."""

    def __init__(self, study):
        evaluator_module.CANARY_EVERY_S = 0.5
        super().__init__(study)

    def break_engine(self):
        self._engine._model = None

    def pid(self):
        return os.getpid()


@pytest.fixture(scope="module")
def spec(study_document):
    spec = StudySpec.model_validate(study_document)
    return resolve_study(spec, load_suites(spec), Console())


@pytest.fixture(scope="module")
def evaluator(spec):
    with pytest.MonkeyPatch.context() as patch, ray_cluster(num_cpus=2):
        patch.setattr(Evaluator, "replica", BreakableReplica)
        patch.setattr(serving, "HEALTH_CHECK_EVERY_S", 1.0)
        with Evaluator(spec, app=APP) as evaluator:
            yield evaluator


@pytest.fixture(scope="module")
def recipe(spec, tmp_path_factory):
    with SearchStudy(spec, RunStore(tmp_path_factory.mktemp("ask")).create(spec)) as study:
        return study.ask().recipe


def replica_pid(evaluator):
    return evaluator._handle.pid.remote().result(timeout_s=60 * PATIENCE)


def break_engine(evaluator):
    evaluator._handle.break_engine.remote().result(timeout_s=60 * PATIENCE)


def test_nobody_else_on_the_network_reaches_a_local_cluster(evaluator, recipe):
    """They listen on loopback; where Serve's replicas do not, they want the token."""
    evaluator.score(recipe, "search")
    this = psutil.Process()
    listening = []
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("tcp")
            listening += [(process.name(), *it.laddr) for it in sockets if it.status == "LISTEN"]
    assert {"gcs_server", "raylet"} <= {name for name, *_ in listening}
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    open_to_all = [(name, port) for name, place, port in listening if place not in loopback]
    assert all(name.startswith("ray::ServeReplica:") for name, _ in open_to_all)
    for _, port in open_to_all:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            ask = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                ask(b"", timeout=30 * PATIENCE)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_broken_engine_is_rebuilt_before_the_next_candidate(evaluator, recipe):
    whole = evaluator.score(recipe, "search")
    pid = replica_pid(evaluator)
    break_engine(evaluator)
    with pytest.raises(EngineError, match="the engine failed; got: "):
        evaluator.score(recipe, "search")

    again = evaluator.score(recipe, "search")

    assert again.metrics == whole.metrics
    assert replica_pid(evaluator) == pid


def test_an_idle_engine_that_cannot_answer_the_canary_is_replaced(evaluator, recipe):
    whole = evaluator.score(recipe, "search")
    pid = replica_pid(evaluator)
    break_engine(evaluator)

    wait_until(lambda: not psutil.pid_exists(pid), within_s=120)

    assert evaluator.score(recipe, "search").metrics == whole.metrics
    assert replica_pid(evaluator) != pid


def test_a_replica_killed_in_mid_search_costs_no_trial(evaluator, spec, tmp_path):
    store = RunStore(tmp_path / "run").create(spec)
    living = [replica_pid(evaluator)]

    def kill_once(record, study):
        if living and record.role == "sampled":
            os.kill(living.pop(), signal.SIGKILL)

    with SearchStudy(spec, store) as study:
        assert search_round(study, app=APP, on_record=kill_once)
        records = study.records

    complete = [record for record in records if record.state == "COMPLETE"]
    assert sum(record.role == "reference" for record in complete) == 4
    assert sum(record.role == "sampled" for record in complete) == spec.num_trials
    assert len({record.result.replica for record in complete}) == 2
    lost = [record for record in records if record.state == "FAIL"]
    assert all("replica was lost" in record.reason for record in lost)


def test_a_replica_killed_in_the_report_split_costs_no_candidate(evaluator, spec, tmp_path):
    store = RunStore(tmp_path / "run").create(spec)
    with SearchStudy(spec, store) as study:
        assert search_round(study, app=APP, on_record=lambda *_: None)
        trials = list(study.records)
    pid = replica_pid(evaluator)
    # Stopped first, so that a candidate is in flight for sure when the replica dies.
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()

    results = evaluate_report_split(trials, evaluator, on_result=lambda *_: None)

    assert set(results) == {trial.candidate for trial in trials}
    assert {result.split for result in results.values()} == {"report"}
    assert {trial.result.replica for trial in trials}.isdisjoint(
        result.replica for result in results.values()
    )


def test_a_replica_says_what_was_wrong_when_it_started(evaluator, spec, recipe):
    gone = spec.base.model_copy(update={"path": "/gone"})
    other = Evaluator(spec.model_copy(update={"base": gone}), app="safemerge-gone")
    with other, pytest.raises(CheckpointError, match="/gone"):
        other.score(recipe, "search")
