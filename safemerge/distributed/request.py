"""Requests to a Serve application, as a client sees them: no engine, no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.serve.exceptions import RayServeException

from safemerge.errors import EngineError, NoReplicaError, SafemergeError

DEPLOYMENT = "CandidateEvaluator"
"""Name of the evaluator's deployment."""

LOOK_EVERY_S = 30.0
"""How long a client waits before it says that it still does."""

REPLICA_WITHIN_S = 1800.0
"""Longest wait for a replica: one that is lost is started again, on a cluster that may grow."""


class Request:
    """A request on its way; its time counts from when a replica took it.

    A lost replica is started again within minutes, and what waits for it meanwhile is not late.

    Args:
        response: What a deployment's handle returned.
        timeout_s: Longest time at the replica.
        what: What is asked, for messages.
    """

    def __init__(self, response: Any, *, timeout_s: float, what: str) -> None:
        self._response, self._timeout_s, self._what = response, timeout_s, what
        self._asked_at: float | None = None
        self._taken_at: float | None = None

    def wait(self, within_s: float) -> Any:
        """Return the answer; None if there is none within this time.

        Raises:
            NoReplicaError: If no replica took the request for very long.
            EngineError: If a replica took it and did not answer in time, or was lost.
            SafemergeError: What the replica raised, without Ray's wrapping.
        """
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        with _without_wrapping(self._what):
            try:
                if self._taken_at is None:
                    self._response._to_object_ref_sync(_timeout_s=within_s)
                    self._taken_at = time.monotonic()
                left_s = self._taken_at + self._timeout_s - time.monotonic()
                return self._response.result(timeout_s=max(0.0, min(within_s, left_s)))
            except ray.exceptions.RayTaskError:
                raise  # the replica's own, which may be a time-out too
            except TimeoutError:
                self._check_time()
        return None

    def result(self) -> Any:
        """Wait until there is an answer; see `wait`."""
        while (answer := self.wait(LOOK_EVERY_S)) is None:
            pass
        return answer

    def _check_time(self) -> None:
        """Give the request up if its time is over."""
        now = time.monotonic()
        if self._taken_at is not None:
            if now - self._taken_at >= self._timeout_s:
                self._cancel()
                raise EngineError(f"{self._what}: no answer within {self._timeout_s:g} s.")
            return
        assert self._asked_at is not None, "asked before it is late"
        limit_s = max(REPLICA_WITHIN_S, 2 * self._timeout_s)
        if now - self._asked_at >= limit_s:
            self._cancel()
            raise NoReplicaError(f"{self._what}: no replica was free within {limit_s:g} s.")

    def _cancel(self) -> None:
        with suppress(RayServeException):
            self._response.cancel()


@contextmanager
def _without_wrapping(what: str) -> Iterator[None]:
    """Raise what a replica raised without Ray's wrapping, and Ray's own errors as ours."""
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, SafemergeError) else None
        raise cause or EngineError(f"{what}: {reason(error)}") from error
    except (ray.exceptions.RayError, RayServeException) as error:
        raise EngineError(f"{what}: the replica was lost; got: {reason(error)}") from error


def unwrapped(response: Any, *, timeout_s: float, what: str) -> Any:
    """Wait for a deployment's answer, from now on.

    Raises:
        EngineError: If there is none in time, or the replica was lost.
        SafemergeError: What the replica raised, without Ray's wrapping.
    """
    with _without_wrapping(what):
        try:
            return response.result(timeout_s=timeout_s)
        except ray.exceptions.RayTaskError:
            raise
        except TimeoutError:
            with suppress(RayServeException):
                response.cancel()
            raise EngineError(f"{what}: no answer within {timeout_s:g} s.") from None


def reason(error: BaseException) -> str:
    """Return the line of a long error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "?")
