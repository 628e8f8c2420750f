"""Judges as Ray Serve deployments: one model for all trials, judging while engines answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydantic import TypeAdapter
from ray import serve

from safemerge.config.base import digest
from safemerge.config.judge import JudgeServiceSpec, JudgeSpec, ModelJudge
from safemerge.distributed.request import unwrapped
from safemerge.distributed.serving import HEALTH_CHECK_EVERY_S, received
from safemerge.distributed.shutdown import DRAINED_AFTER_S
from safemerge.errors import EngineError, SafemergeError, ScoringError
from safemerge.scoring.judge import Exchange, Judge, Judgement, unscored
from safemerge.scoring.local_judge import local_judge
from safemerge.scoring.served_judge import served_judge

MAX_BATCHES = 8
"""Batches of several callers that a judge takes at once."""
BATCH_WAIT_S = 0.02
"""How long a judge waits for batches of other callers."""
CANARY = Exchange("Say hello.", "Hello.")
CANARY_TIMEOUT_S = 120.0
REPLACED_WITHIN_S = 4 * HEALTH_CHECK_EVERY_S
"""By then Serve has taken a replica away whose engine died: three failed checks."""
LAST_LOOK_S = 0.1
"""How long an answer is waited for when its time is over: it may be there already."""

_SPEC: TypeAdapter[JudgeSpec] = TypeAdapter(JudgeSpec)


class JudgeReplica:
    """One replica: a judge's model, and batches of exchanges from any number of callers.

    Args:
        spec: JSON of the declared judge, its path resolved.
        service: JSON of the service's settings.
    """

    def __init__(self, spec: str, service: str) -> None:
        declared = received(spec, _SPEC, what="judge")
        settings = JudgeServiceSpec.model_validate_json(service)
        self._timeout_s = settings.timeout_s
        self._busy_since: float | None = None
        self._is_suspect = False
        self._judge = self._start(declared, settings)
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
        self._busy_since, self._is_suspect = time.monotonic(), True
        try:
            found = self._judge.judge(exchanges)
        except SafemergeError:
            raise
        except Exception as error:  # noqa: BLE001
            # A border. The error's text is neither shown nor logged: it may repeat what
            # was judged.
            raise ScoringError(
                f"judge '{self._judge.name}': failed; got {type(error).__name__}."
            ) from None
        else:
            self._is_suspect = False
            return found
        finally:
            self._busy_since = None

    async def check_health(self) -> None:
        """Tell Serve whether to keep this replica: one that hangs or lost its engine is replaced.

        Raises:
            EngineError: If a batch takes longer than anybody waits for it.
            ScoringError: If a batch failed, and so does an exchange that any judge can judge.
            TimeoutError: If that exchange gets no verdict.
        """
        since = self._busy_since
        if since is not None:
            if time.monotonic() - since > self._timeout_s:
                raise EngineError(
                    f"judge '{self._judge.name}': a batch took longer than {self._timeout_s:g} s."
                )
            return
        if self._is_suspect:
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(
                loop.run_in_executor(self._thread, self._judgements, [CANARY]),
                timeout=CANARY_TIMEOUT_S,
            )


class RemoteJudge:
    """A judge behind a deployment handle.

    A batch that gets no answer in time, or whose replica was lost or failed, is sent again; when
    the retries or the time are spent its exchanges are unscored, and what came before stays.

    Args:
        spec: The declared judge.
        handle: Of its deployment.
        service: Time-out and retries.
        deadline: When all calls must be over, by `clock`; see `judges_until`.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        spec: ModelJudge,
        handle: Any,
        service: JudgeServiceSpec,
        *,
        deadline: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._spec = spec
        self._handle = handle
        self._service = service
        self._deadline = deadline
        self._clock = clock
        self._sleep = sleep

    @property
    def name(self) -> str:
        """What tables call it."""
        return self._spec.name

    @property
    def threshold(self) -> float:
        """An answer is flagged when its harm lies above."""
        return self._spec.threshold

    def until(self, deadline: float) -> RemoteJudge:
        """Return this judge with another deadline."""
        return RemoteJudge(
            self._spec,
            self._handle,
            self._service,
            deadline=deadline,
            clock=self._clock,
            sleep=self._sleep,
        )

    def judge(self, exchanges: Sequence[Exchange]) -> list[Judgement]:
        """Send all batches at once and gather them in order."""
        size = self._spec.batch_size
        batches = [
            tuple(exchanges[start : start + size]) for start in range(0, len(exchanges), size)
        ]
        pending = [self._handle.judge.remote(batch) for batch in batches]
        patience = _Patience(self._deadline, self._clock, self._sleep)
        return [
            judgement
            for batch, response in zip(batches, pending, strict=True)
            for judgement in self._patient(batch, response, patience)
        ]

    def _patient(
        self, batch: tuple[Exchange, ...], response: Any, patience: _Patience
    ) -> list[Judgement]:
        text, attempts = "", self._service.num_retries + 1
        for attempt in range(1, attempts + 1):
            wait = max(LAST_LOOK_S, min(self._service.timeout_s, patience.left()))
            try:
                found = unwrapped(response, timeout_s=wait, what=f"judge '{self.name}'")
            except SafemergeError as error:
                text, is_judges_own = str(error), isinstance(error, ScoringError)
            else:
                if _fits(found, batch):
                    return list(found)
                text = f"judge '{self.name}': its answer is no judgement of each exchange."
                is_judges_own = False
            if patience.left() <= 0:
                return [unscored(f"{text} The candidate's time is over.") for _ in batch]
            if attempt < attempts:
                if is_judges_own:
                    patience.pause_once()
                response = self._handle.judge.remote(batch)
        return [unscored(f"{text} Given up after {attempts} attempts.") for _ in batch]


class _Patience:
    """What one call of a judge may still wait.

    A dead engine fails at once, as often as it is asked; so once a call it is given the time to
    be replaced.
    """

    def __init__(
        self, deadline: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._deadline = deadline
        self._clock = clock
        self._sleep = sleep
        self._has_paused = False

    def left(self) -> float:
        return self._deadline - self._clock()

    def pause_once(self) -> None:
        if not self._has_paused:
            self._has_paused = True
            self._sleep(min(REPLACED_WITHIN_S, self.left()))


def judges_until(
    judges: Sequence[Sequence[Judge]], deadline: float
) -> tuple[tuple[Judge, ...], ...]:
    """Return judges whose remote ones share a deadline, so that no wait outlasts the caller's.

    Args:
        judges: Those of each suite.
        deadline: By `time.monotonic`.
    """
    return tuple(
        tuple(judge.until(deadline) if isinstance(judge, RemoteJudge) else judge for judge in row)
        for row in judges
    )


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
            health_check_timeout_s=CANARY_TIMEOUT_S + 10,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=service.timeout_s + DRAINED_AFTER_S,
        )(JudgeReplica).bind(
            judge.on_device(service.gpus_per_replica).model_dump_json(), service.model_dump_json()
        )
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
