import asyncio
import time
from contextlib import suppress

import pytest

from safemerge.config.study import EvaluatorSpec
from safemerge.distributed import serving
from safemerge.distributed.serving import Application, EngineReplica
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
def deleted(monkeypatch):
    """What Serve is told to delete."""
    deleted = []
    monkeypatch.setattr(
        serving.serve, "delete", lambda app, _blocking=True: deleted.append((app, _blocking))
    )
    return deleted


@pytest.mark.parametrize(
    ("cause", "address", "told"),
    [
        (None, "", [("app", True)]),
        (KeyboardInterrupt, "", [("app", True)]),
        (Terminated, "10.0.0.1:6379", [("app", False)]),
        (Terminated, "", []),  # the cluster ends with the command
    ],
)
def test_an_application_is_not_waited_for_after_sigterm(
    application, deleted, monkeypatch, cause, address, told
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    application._app = "app"
    with suppress(KeyboardInterrupt), application:
        if cause is not None:
            raise cause
    assert deleted == told
