"""What every Serve application has in common: replicas that own an engine, and their handle.

A quiet start, a check of resources, health, deadlines, retries, autoscaling, and an end that
leaves no process behind.
"""

from __future__ import annotations

import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Self, TypeVar

import ray
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve.schema import LoggingConfig

from safemerge.config.judge import JudgeServiceSpec, ModelJudge
from safemerge.config.study import EvaluatorSpec
from safemerge.distributed.request import Request, reason
from safemerge.distributed.router import routing
from safemerge.distributed.shutdown import (
    CLOSED_SOON_S,
    DRAINED_AFTER_S,
    dismissing,
    end_application,
)
from safemerge.engines.core_claim import CoreClaim
from safemerge.errors import ConfigError, EngineError, NoReplicaError, PreflightError, UserError
from safemerge.interrupt import Terminated

_Declared = TypeVar("_Declared")

HEALTH_CHECK_EVERY_S = 10.0
"""Serve restarts a replica that fails three checks in a row."""

LOAD_TOLD_EVERY_S = 10.0
"""How often Serve's handles tell its controller what waits: a replica comes or goes no faster."""


class EngineReplica(ABC):
    """A replica that owns an engine: cores of its own, one thread for the engine, a health check.

    Args:
        evaluator: How many CPUs and GPUs it has, and how long one request may take.
        what: What it is, for messages.
        request: What it is asked for, for messages, e.g. ``a candidate``.
        threads_beside: Threads for what needs no engine, e.g. scoring.
    """

    def __init__(
        self, evaluator: EvaluatorSpec, *, what: str, request: str, threads_beside: int = 1
    ) -> None:
        self._timeout_s, self._what, self._request = evaluator.timeout_s, what, request
        # Only vLLM binds its threads; a claim of the transformers engine would just keep cores
        # from others.
        binds = evaluator.engine == "vllm" and not evaluator.gpus_per_replica
        self._claim = CoreClaim(max(1, int(evaluator.cpus_per_replica))) if binds else None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._beside = ThreadPoolExecutor(
            max_workers=threads_beside, thread_name_prefix="beside-engine"
        )
        self._busy_since: float | None = None
        self._wrong: UserError | None = None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Keep a wrong input that a block meets for the first request.

        A replica that does not come up is tried again and again, and nobody hears why.
        """
        try:
            yield
        except UserError as error:
            self._wrong = error

    @property
    def cpu_ids(self) -> str | None:
        """The cores that the engine is bound to, as vLLM writes them; None if it is not."""
        return None if self._claim is None else self._claim.cpu_ids

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time of a block as the engine's, for the health check.

        Raises:
            UserError: What was wrong when the replica started, if anything was.
        """
        if self._wrong is not None:
            raise self._wrong
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica: an engine that can't answer is restarted.

        Raises:
            EngineError: If a request takes longer than the timeout.
        """
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._timeout_s:
            raise EngineError(
                f"{self._what}: {self._request} took longer than {self._timeout_s:g} s."
            )

    @abstractmethod
    def close_engine(self) -> None:
        """End the engine, if one runs."""

    def __del__(self) -> None:
        """Serve calls this on a graceful shutdown: leave no engine process behind."""
        if not hasattr(self, "_busy_since"):
            return  # the constructor failed
        for pool in (self._thread, self._beside):
            pool.shutdown(wait=False, cancel_futures=True)
        self.close_engine()
        if self._claim is not None:
            self._claim.release()


class Application:
    """A running application of such replicas; a context manager that ends it.

    Args:
        replica: Class of its replicas, an `EngineReplica`.
        arguments: What each is built with.
        app: Name of the Serve application.
        deployment: Name of its deployment.
        what: What it is, for messages.
        evaluator: Its replicas, placed; see `placed`.
        at_once: Requests that a replica takes.
        judges: Judges that run as deployments beside it, and that its replicas are built with.
        service: Of these judges.
        health_check_timeout_s: How long a health check may take.
        options: What each is built with, by keyword.

    Raises:
        PreflightError: If the cluster has no room for the least replicas.
        EngineError: If no replica comes up.
    """

    def __init__(
        self,
        replica: type[EngineReplica],
        *arguments: object,
        app: str,
        deployment: str,
        what: str,
        evaluator: EvaluatorSpec,
        at_once: int = 1,
        judges: Sequence[ModelJudge] = (),
        service: JudgeServiceSpec | None = None,
        health_check_timeout_s: float = 30.0,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self._app, self._what, self._placed = app, what, evaluator
        check_resources(least_needs(what, evaluator, judges, service))
        bound = serve.deployment(
            name=deployment,
            max_ongoing_requests=at_once,
            ray_actor_options=_actor_options(evaluator),
            autoscaling_config=autoscaling(evaluator, at_once=at_once),
            request_router_config=routing(),
            health_check_period_s=HEALTH_CHECK_EVERY_S,
            health_check_timeout_s=health_check_timeout_s,
            graceful_shutdown_wait_loop_s=0.2,
            # Serve picks what it stops by node, idle or not: a busy one finishes its candidate.
            graceful_shutdown_timeout_s=evaluator.timeout_s + DRAINED_AFTER_S,
        )(replica).bind(*arguments, **(options or {}))
        self._handle = run_application(bound, app=app, what=what)
        self._up = ExitStack()
        self._up.enter_context(dismissing(app))

    def retried(self, ask: Callable[[], Any], response: Any, *, timeout_s: float) -> Any:
        """Wait for an answer; one whose replica was lost or late is asked for again.

        Args:
            ask: Sends the request again and returns its response.
            response: Of the first request, which was sent already.
            timeout_s: For each try, from when a replica took it.

        Raises:
            EngineError: If there is no answer after `num_retries` more tries; a
                `NoReplicaError` if no replica took it for very long.
            SafemergeError: What the replica raised, without Ray's wrapping.
        """
        for _ in range(self._placed.num_retries):
            try:
                return Request(response, timeout_s=timeout_s, what=self._what).result()
            except NoReplicaError:
                raise
            except EngineError:
                response = ask()
        return Request(response, timeout_s=timeout_s, what=self._what).result()

    def close(self) -> None:
        """Shut the application down and wait until its replicas are gone."""
        self._up.close()
        end_application(self._app)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if isinstance(error, Terminated):
            self._up.close()
            _delete_soon(self._app)
        else:
            self.close()


def least_needs(
    what: str,
    evaluator: EvaluatorSpec,
    judges: Sequence[ModelJudge] = (),
    service: JudgeServiceSpec | None = None,
) -> list[tuple[str, float, float]]:
    """Return what an application's least replicas take: each deployment with its CPUs and GPUs.

    Args:
        what: What the application is, for messages.
        evaluator: Its replicas, placed; see `placed`.
        judges: Judges that are deployments of it.
        service: Of these judges.
    """
    needs, num = evaluator.replica_needs, evaluator.min_replicas
    found = [(what, needs["CPU"] * num, needs["GPU"] * num)]
    if service is not None:
        cpus, gpus = service.cpus_per_replica, service.gpus_per_replica
        least = service.min_replicas
        found += [(f"judge '{judge.name}'", cpus * least, gpus * least) for judge in judges]
    return found


def run_application(application: Any, *, app: str, what: str) -> Any:
    """Start a Serve application without an HTTP proxy, so without a port that could be taken.

    Args:
        application: Bound deployments.
        app: Its name.
        what: What it is, for messages.

    Returns:
        Handle of its ingress deployment.

    Raises:
        EngineError: If no replica comes up.
    """
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    if app in serve.status().applications:
        # Left on a cluster by a driver that was killed: nobody waits for its candidates.
        end_application(app, within_s=CLOSED_SOON_S)
    try:
        return serve.run(
            application, name=app, route_prefix=None, blocking=False, logging_config=quiet
        )
    except (RuntimeError, ray.exceptions.RayError) as error:
        cause = _deployment_reason(app) or reason(error)
        end_application(app)
        raise EngineError(f"{what}: no replica came up; got: {cause}") from error
    except Terminated:
        _delete_soon(app)
        raise
    except KeyboardInterrupt:
        end_application(app)
        raise


def autoscaling(evaluator: EvaluatorSpec, *, at_once: int) -> dict[str, float]:
    """Return how Serve scales replicas: by the requests that wait or are answered.

    Load, which clients tell every 10 s, is averaged for no longer than replicas are kept idle.

    Args:
        evaluator: Least and most replicas, and both delays.
        at_once: Requests that a replica takes.
    """
    return {
        "min_replicas": evaluator.min_replicas,
        "max_replicas": evaluator.max_replicas,
        "target_ongoing_requests": at_once,
        "upscale_delay_s": evaluator.upscale_delay_s,
        "downscale_delay_s": evaluator.downscale_delay_s,
        "look_back_period_s": min(30.0, max(1.2 * LOAD_TOLD_EVERY_S, evaluator.downscale_delay_s)),
    }


def _delete_soon(app: str) -> None:
    """Have an application shut down without waiting for its candidates: SIGTERM leaves seconds.

    A local cluster ends with the command, and takes its replicas along.
    """
    if os.environ.get("RAY_ADDRESS"):
        end_application(app, within_s=CLOSED_SOON_S)


def placed(evaluator: EvaluatorSpec) -> EvaluatorSpec:
    """Return the evaluator with the GPUs that its replicas take on this cluster."""
    return evaluator.placed(ray.cluster_resources().get("GPU", 0.0))


def _actor_options(evaluator: EvaluatorSpec) -> dict[str, float]:
    """Return what a placed replica asks of Ray."""
    needs = evaluator.replica_needs
    return {"num_cpus": needs["CPU"], **({"num_gpus": needs["GPU"]} if needs["GPU"] else {})}


def machine_resources() -> dict[str, float]:
    """Return CPUs and GPUs of this machine, the most that a local cluster can have."""
    import torch

    return {"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}


def check_resources(
    needs: Sequence[tuple[str, float, float]], there: Mapping[str, float] | None = None
) -> None:
    """Refuse replicas that a local cluster has no room for: they would be waited for for ever.

    A cluster named by ``RAY_ADDRESS`` may grow, so nothing is said of it.

    Args:
        needs: For each deployment what it is, and the CPUs and GPUs of its least replicas.
        there: CPUs and GPUs that there are; those of the cluster if left out.

    Raises:
        PreflightError: If they need more than there is.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    there = ray.cluster_resources() if there is None else there
    for key, place in (("CPU", 1), ("GPU", 2)):
        wanted = sum(need[place] for need in needs)  # type: ignore[misc]
        if wanted > there.get(key, 0.0) + 1e-6:
            shares = ", ".join(f"{need[0]} {need[place]:g}" for need in needs if need[place])
            raise PreflightError(
                f"cluster: must have the {key}s of the least replicas, {wanted:g} ({shares}); got "
                f"{there.get(key, 0.0):g}. Ask for fewer replicas or smaller ones, or give the "
                "judges placement: replica."
            )


def received(text: str, declaration: TypeAdapter[_Declared], *, what: str) -> _Declared:
    """Read what the driver sent; a package that only this node lacks is one clear message.

    Args:
        text: JSON that the driver has validated.
        declaration: Of what it is.
        what: What it is called in messages.

    Raises:
        ConfigError: If it is not valid here.
    """
    try:
        return declaration.validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            str(item["msg"]).removeprefix("Value error, ") for item in error.errors()
        )
        raise ConfigError(f"{what}, as read on node {platform.node()}: {problems}") from None


def _deployment_reason(app: str) -> str:
    # The application's message only names the deployment that failed; its own says why.
    found = serve.status().applications.get(app)
    for deployment in found.deployments.values() if found is not None else ():
        if "Error" in deployment.message:
            return reason(RuntimeError(deployment.message))
    return ""
