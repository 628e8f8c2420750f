"""What every Serve application has in common: a quiet start, room, errors without wrapping."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from safemerge.config.study import EvaluatorSpec
from safemerge.errors import EngineError, PreflightError, SafemergeError

HEALTH_CHECK_EVERY_S = 10.0
"""Serve restarts a replica that fails three checks in a row."""


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
    try:
        return serve.run(
            application, name=app, route_prefix=None, blocking=False, logging_config=quiet
        )
    except (RuntimeError, ray.exceptions.RayError) as error:
        told = _deployment_reason(app) or reason(error)
        serve.delete(app)
        raise EngineError(f"{what}: no replica came up; got: {told}") from error
    except KeyboardInterrupt:
        serve.delete(app)
        raise


def placed(evaluator: EvaluatorSpec) -> EvaluatorSpec:
    """Return the evaluator with the GPUs that its replicas take on this cluster."""
    return evaluator.placed(ray.cluster_resources().get("GPU", 0.0))


def actor_options(evaluator: EvaluatorSpec) -> dict[str, float]:
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
            told = ", ".join(f"{need[0]} {need[place]:g}" for need in needs if need[place])
            raise PreflightError(
                f"cluster: must have the {key}s of the least replicas, {wanted:g} ({told}); got "
                f"{there.get(key, 0.0):g}. Ask for fewer replicas or smaller ones, or give the "
                "judges placement: replica."
            )


def unwrapped(response: Any, *, timeout_s: float, what: str) -> Any:
    """Wait for a deployment's answer.

    Raises:
        EngineError: If there is none in time, or the replica was lost.
        SafemergeError: What the replica raised, without Ray's wrapping.
    """
    try:
        return response.result(timeout_s=timeout_s)
    except TimeoutError:
        with suppress(RayServeException):
            response.cancel()
        raise EngineError(f"{what}: no answer within {timeout_s:g} s.") from None
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, SafemergeError) else None
        raise cause or EngineError(f"{what}: {reason(error)}") from error
    except (ray.exceptions.RayError, RayServeException) as error:
        raise EngineError(f"{what}: the replica was lost; got: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return the line of a long error that says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "?")


def _deployment_reason(app: str) -> str:
    # The application's message only names the deployment that failed; its own says why.
    found = serve.status().applications.get(app)
    for deployment in found.deployments.values() if found is not None else ():
        if "Error" in deployment.message:
            return reason(RuntimeError(deployment.message))
    return ""
