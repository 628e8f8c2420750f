import asyncio
import time
from contextlib import ExitStack, nullcontext, suppress

import pytest

from safemerge.config.study import EvaluatorSpec
from safemerge.distributed import serving
from safemerge.distributed.serving import Application, EngineReplica
from safemerge.distributed.shutdown import CLOSED_SOON_S, CLOSED_WITHIN_S
from safemerge.errors import EngineError, ScoringError
from safemerge.interrupt import Terminated


class Replica(EngineReplica):
    """A replica whose engine is a list of what happened to it."""

    def __init__(self, evaluator):
        super().__init__(evaluator, what="evaluator", request="a candidate")
        self.engine = ["started"]

    def close_engine(self):
        self.engine.append("closed")


@pytest.fixture
def replica():
    return Replica(EvaluatorSpec(engine="transformers", timeout_s=10))


def test_a_busy_replica_is_healthy_until_its_time_is_up(replica, monkeypatch):
    asyncio.run(replica.check_health())
    with replica.busy():
        asyncio.run(replica.check_health())
        began = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: began + 11)
        with pytest.raises(EngineError, match=r"evaluator: a candidate took longer than 10 s\."):
            asyncio.run(replica.check_health())
    asyncio.run(replica.check_health())


def test_a_request_that_fails_leaves_the_replica_idle(replica):
    with pytest.raises(ValueError, match="bad"), replica.busy():
        raise ValueError("bad")
    assert replica._busy_since is None


def test_a_replica_that_ends_closes_its_engine(replica):
    engine = replica.engine
    replica.__del__()
    assert engine == ["started", "closed"]


class Response:
    """What a deployment's handle returns: an outcome that is waited for."""

    def __init__(self, outcome):
        self.outcome = outcome

    def _to_object_ref_sync(self, *, _timeout_s):
        """A replica takes it at once."""

    def result(self, *, timeout_s):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self):
        pass


@pytest.fixture
def application():
    application = Application.__new__(Application)
    application._what = "evaluator"
    application._placed = EvaluatorSpec(num_retries=2)
    return application


def retried(application, first, *others):
    left = iter(others)
    return application.retried(lambda: Response(next(left)), Response(first), timeout_s=5), list(
        left
    )


def test_a_late_answer_is_asked_for_again(application):
    assert retried(application, TimeoutError(), "answer", "unused") == ("answer", ["unused"])
    assert retried(application, TimeoutError(), TimeoutError(), 3) == (3, [])


def test_after_the_last_try_the_reason_is_raised(application):
    with pytest.raises(EngineError, match=r"evaluator: no answer within 5 s\."):
        retried(application, *[TimeoutError()] * 3)


def test_what_another_try_cannot_change_is_raised_at_once(application):
    with pytest.raises(ScoringError, match="too many"):
        retried(application, ScoringError("too many"), "unused")


@pytest.fixture
def ended(monkeypatch):
    """Which applications end, and how long their requests are waited for."""
    ended = []
    monkeypatch.setattr(
        serving,
        "end_application",
        lambda app, *, within_s=CLOSED_WITHIN_S: ended.append((app, within_s)),
    )
    return ended


@pytest.mark.parametrize(
    ("cause", "address", "told"),
    [
        (None, "", [("app", CLOSED_WITHIN_S)]),
        (KeyboardInterrupt, "", [("app", CLOSED_WITHIN_S)]),
        (Terminated, "10.0.0.1:6379", [("app", CLOSED_SOON_S)]),
        (Terminated, "", []),  # the cluster ends with the command
    ],
)
def test_an_application_is_not_waited_for_after_sigterm(
    application, ended, monkeypatch, cause, address, told
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    application._app, application._up = "app", ExitStack()
    with suppress(KeyboardInterrupt), application:
        if cause is not None:
            raise cause
    assert ended == told


@pytest.fixture
def deployed(monkeypatch):
    """What Serve is told of the deployment of an application."""
    told = {}

    class Deployment:
        def bind(self, *arguments, **options):
            return arguments, options

    def deployment(**settings):
        told.update(settings)
        return lambda replica: Deployment()

    monkeypatch.setattr(serving.serve, "deployment", deployment)
    monkeypatch.setattr(serving, "check_resources", lambda needs: None)
    monkeypatch.setattr(serving, "run_application", lambda bound, *, app, what: bound)
    monkeypatch.setattr(serving, "dismissing", lambda app: nullcontext())
    return told


def application_of(**evaluator):
    spec = EvaluatorSpec(engine="transformers", **evaluator)
    return Application(
        Replica, spec, app="app", deployment="replicas", what="evaluator", evaluator=spec
    )


def test_a_replica_that_is_scaled_down_may_finish_its_candidate(deployed):
    application_of(timeout_s=3600)
    assert deployed["graceful_shutdown_timeout_s"] > 3600


def test_replicas_scale_as_the_study_says(deployed):
    application_of(min_replicas=1, max_replicas=3, upscale_delay_s=1, downscale_delay_s=20)
    scaling = deployed["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 3)
    assert (scaling["upscale_delay_s"], scaling["downscale_delay_s"]) == (1, 20)
    # A candidate's replica takes one request: a second one is load for another replica.
    assert scaling["target_ongoing_requests"] == deployed["max_ongoing_requests"] == 1
    assert scaling["look_back_period_s"] == 20
