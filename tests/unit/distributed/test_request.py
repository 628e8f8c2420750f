"""A request's time counts from when a replica took it."""

import time

import pytest
import ray
from ray.serve.exceptions import RayServeException

from safemerge.distributed.request import REPLICA_WITHIN_S, Request
from safemerge.errors import EngineError, NoReplicaError, ScoringError


class Clock:
    """Time that passes only while something is waited for."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Response:
    """What a deployment's handle returns.

    Args:
        clock: Its time.
        taken_s: Seconds until a replica takes the request.
        answer_s: Seconds from then until there is an answer.
        answer: The answer, or what is raised instead.
    """

    def __init__(self, clock, *, taken_s, answer_s, answer="answer"):
        self.clock, self.answer = clock, answer
        self.taken_at = clock.now + taken_s
        self.answered_at = self.taken_at + answer_s
        self.cancelled = False

    def _until(self, at, within_s):
        if at > self.clock.now + within_s:
            self.clock.now += within_s
            raise TimeoutError
        self.clock.now = max(self.clock.now, at)

    def _to_object_ref_sync(self, *, _timeout_s):
        self._until(self.taken_at, _timeout_s)

    def result(self, *, timeout_s):
        self._until(self.answered_at, timeout_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def cancel(self):
        self.cancelled = True
        raise RayServeException("not every request can be cancelled")


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock.monotonic)
    return clock


def ask(clock, *, timeout_s=100.0, **response):
    response = Response(clock, **response)
    return Request(response, timeout_s=timeout_s, what="evaluator"), response


def test_waiting_for_a_replica_uses_up_no_time_of_the_request(clock):
    request, response = ask(clock, taken_s=1000, answer_s=99)
    assert request.wait(30) is None
    assert clock.now == 1030
    assert request.result() == "answer"
    assert clock.now == response.answered_at
    assert not response.cancelled


def test_a_replica_that_does_not_answer_in_time_is_given_up(clock):
    request, response = ask(clock, taken_s=1000, answer_s=101)
    with pytest.raises(EngineError, match=r"evaluator: no answer within 100 s\.") as raised:
        request.result()
    assert not isinstance(raised.value, NoReplicaError)
    assert clock.now == response.taken_at + 100
    assert response.cancelled


@pytest.mark.parametrize(("timeout_s", "limit_s"), [(100, REPLICA_WITHIN_S), (2000, 4000)])
def test_a_replica_that_never_comes_is_waited_for_long_but_not_for_ever(clock, timeout_s, limit_s):
    request, response = ask(clock, timeout_s=timeout_s, taken_s=1e9, answer_s=1)
    with pytest.raises(NoReplicaError, match=rf"no replica was free within {limit_s:g} s"):
        request.result()
    assert limit_s <= clock.now - 1000 < limit_s + 31
    assert response.cancelled


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (ray.exceptions.ActorDiedError(), EngineError, "the replica was lost"),
        (
            ray.exceptions.RayTaskError("score", "", ScoringError("too many")),
            ScoringError,
            "^too many$",
        ),
        (
            ray.exceptions.RayTaskError(
                "score", "TimeoutError: judge", TimeoutError("judge")
            ).as_instanceof_cause(),
            EngineError,
            "^evaluator: .*TimeoutError",
        ),
    ],
)
def test_what_the_replica_raises_is_told_at_once(clock, raised, kind, told):
    request, response = ask(clock, taken_s=0, answer_s=5, answer=raised)
    with pytest.raises(kind, match=told):
        request.wait(30)
    assert clock.now == 1005
    assert not response.cancelled
