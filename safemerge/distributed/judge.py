"""Judges as Ray Serve deployments: one model for all trials, judging while engines answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import TypeAdapter
from ray import serve

from safemerge.config.base import digest
from safemerge.config.judge import JudgeServiceSpec, JudgeSpec, ModelJudge
from safemerge.distributed.serving import HEALTH_CHECK_EVERY_S, unwrapped
from safemerge.errors import SafemergeError, ScoringError
from safemerge.scoring.judge import Exchange, Judge, Judgement, unscored
from safemerge.scoring.local_judge import local_judge
from safemerge.scoring.served_judge import served_judge

MAX_BATCHES = 8
"""Batches of several callers that a judge takes at once."""
BATCH_WAIT_S = 0.02
"""How long a judge waits for batches of other callers."""

_SPEC: TypeAdapter[JudgeSpec] = TypeAdapter(JudgeSpec)


class JudgeReplica:
    """One replica: a judge's model, and batches of exchanges from any number of callers.

    Args:
        spec: JSON of the declared judge, its path resolved.
        service: JSON of the service's settings.
    """

    def __init__(self, spec: str, service: str) -> None:
        declared = _SPEC.validate_json(spec)
        self._judge = self._start(declared, JudgeServiceSpec.model_validate_json(service))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="judge")

    def _start(self, spec: JudgeSpec, service: JudgeServiceSpec) -> Judge:
        return served_judge(spec, service)

    @serve.batch(max_batch_size=MAX_BATCHES, batch_wait_timeout_s=BATCH_WAIT_S)
    async def judge(self, batches: list[tuple[Exchange, ...]]) -> list[list[Judgement]]:
        """Judge the exchanges of several batches as one; answers go back to their callers.

        Raises:
            ScoringError: If the judge as a whole cannot work.
        """
        flat = [exchange for batch in batches for exchange in batch]
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, self._judgements, flat)
        if len(found) != len(flat):
            raise ScoringError(
                f"judge '{self._judge.name}': must judge every exchange; got {len(found)} of "
                f"{len(flat)}."
            )
        parts, start = [], 0
        for batch in batches:
            parts.append(found[start : start + len(batch)])
            start += len(batch)
        return parts

    def _judgements(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        try:
            return self._judge.judge(exchanges)
        except SafemergeError:
            raise
        except Exception as error:  # noqa: BLE001
            # A border. The error's text is not told, and ends up in no log: it may repeat what
            # was judged.
            raise ScoringError(
                f"judge '{self._judge.name}': failed; got {type(error).__name__}."
            ) from None


class RemoteJudge:
    """A judge behind a deployment handle.

    A batch that gets no answer in time, or whose replica was lost or failed, is sent again; when
    the retries are spent its exchanges are unscored, and what came before stays.

    Args:
        spec: The declared judge.
        handle: Of its deployment.
        service: Time-out and retries.
    """

    def __init__(self, spec: ModelJudge, handle: Any, service: JudgeServiceSpec) -> None:
        self._spec = spec
        self._handle = handle
        self._service = service

    @property
    def name(self) -> str:
        """What tables call it."""
        return self._spec.name

    @property
    def threshold(self) -> float:
        """An answer is flagged when its harm lies above."""
        return self._spec.threshold

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        """Send all batches at once and gather them in order."""
        size = self._spec.batch_size
        batches = [
            tuple(exchanges[start : start + size]) for start in range(0, len(exchanges), size)
        ]
        pending = [self._handle.judge.remote(batch) for batch in batches]
        return [
            judgement
            for batch, response in zip(batches, pending, strict=True)
            for judgement in self._patient(batch, response)
        ]

    def _patient(self, batch: tuple[Exchange, ...], response: Any) -> list[Judgement]:
        told = ""
        for attempt in range(self._service.num_retries + 1):
            if attempt > 0:
                response = self._handle.judge.remote(batch)
            try:
                found = unwrapped(
                    response, timeout_s=self._service.timeout_s, what=f"judge '{self.name}'"
                )
            except SafemergeError as error:
                told = str(error)
                continue
            if _fits(found, batch):
                return list(found)
            told = f"judge '{self.name}': its answer is no judgement of each exchange."
        attempts = self._service.num_retries + 1
        return [unscored(f"{told} Given up after {attempts} attempts.") for _ in batch]


def _fits(found: object, batch: Sequence[Exchange]) -> bool:
    return (
        isinstance(found, list)
        and len(found) == len(batch)
        and all(isinstance(item, Judgement) for item in found)
    )


def bound_judges(judges: Sequence[ModelJudge], service: JudgeServiceSpec) -> dict[str, Any]:
    """Return a bound deployment for each judge, by its key; see `judge_maker`.

    Args:
        judges: With ``placement: service``.
        service: Replicas and resources of each.
    """
    options: dict[str, Any] = {"num_cpus": service.cpus_per_replica}
    if service.gpus_per_replica:
        options["num_gpus"] = service.gpus_per_replica
    return {
        _key(judge): serve.deployment(
            name=f"Judge-{judge.name}-{_key(judge)[:4]}",
            max_ongoing_requests=2 * MAX_BATCHES,
            ray_actor_options=options,
            autoscaling_config={
                "min_replicas": service.min_replicas,
                "max_replicas": service.max_replicas,
                "target_ongoing_requests": MAX_BATCHES,
                "upscale_delay_s": 5,
                "downscale_delay_s": 120,
            },
            health_check_period_s=HEALTH_CHECK_EVERY_S,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=30,
        )(JudgeReplica).bind(judge.model_dump_json(), service.model_dump_json())
        for judge in judges
    }


def judge_maker(
    handles: Mapping[str, Any], service: JudgeServiceSpec
) -> Callable[[JudgeSpec], Judge]:
    """Return what makes a declared judge: its deployment's client, else one in this process.

    Args:
        handles: Deployment handles, by the keys of `bound_judges`.
        service: Time-out and retries.
    """

    def make(spec: JudgeSpec) -> Judge:
        handle = None if spec.kind == "refusal_proxy" else handles.get(_key(spec))
        if handle is None or spec.kind == "refusal_proxy":
            return local_judge(spec)
        return RemoteJudge(spec, handle, service)

    return make


def _key(spec: ModelJudge) -> str:
    return digest(spec.resolved())
