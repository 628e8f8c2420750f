"""Our Ray Tune scheduler: first come, first served, by clients that live as long as the search."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from safemerge.distributed.request import LOOK_EVERY_S
from safemerge.distributed.trainable import RUNG
from safemerge.records import RungResult

logger = logging.getLogger(__name__)

CLIENT_SILENT_S = 180.0
"""A client that has not reported for so long hangs: it says every 30 s that it still waits."""


class StudyScheduler(FIFOScheduler):
    """Keeps clients for the next trial, ends those that hang, asks the rung which trials continue.

    Args:
        clients: How many are kept while no trial waits for one; as many as run side by side.
        promote: From a trial's id and its losses on the low rung to whether it continues.
        silent_s: How long a client that runs a trial may stay silent, in seconds.
    """

    # NOTE: buffered, a trial would answer the prompts before anybody has looked at its losses,
    # and a client that waits would seem to hang.
    _supports_buffered_results = False

    def __init__(
        self,
        *,
        clients: int,
        promote: Callable[[str, RungResult], bool],
        silent_s: float = CLIENT_SILENT_S,
    ) -> None:
        super().__init__()
        self._clients, self._promote, self._silent_s = clients, promote, silent_s
        self._keeps_clients = False
        self._heard: dict[str, float] = {}
        self._looked_at = time.monotonic()

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Let Tune keep a client for every trial that runs side by side.

        By itself it keeps what pending trials ask for, and one more: replicas that are done
        together would end their clients, and each new one imports Ray for seconds.
        """
        if not self._keeps_clients:
            cache = tune_controller._tune_controller._actor_cache
            cache.increase_max(trial.placement_group_factory, by=self._clients)
            self._keeps_clients = True

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Stop a trial that the rung prunes; let every other one continue."""
        self._heard[trial.trial_id] = time.monotonic()
        if RUNG not in result:
            return str(self.CONTINUE)
        found = RungResult.model_validate_json(result[RUNG])
        goes_on = self._promote(trial.trial_id, found)
        return str(self.CONTINUE if goes_on else self.STOP)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """Return the trial without a client that waits longest; end clients that hang.

        A trial whose client starts waits for it: given a free one, Tune would end the one that
        starts and begin another, for every trial that takes less time than the start.
        """
        live = sorted(tune_controller.get_live_trials(), key=lambda trial: trial.config["number"])
        self._watch([trial for trial in live if trial.status == Trial.RUNNING])
        served = tune_controller._tune_controller._trial_to_actor
        pending = (trial for trial in live if trial.status == Trial.PENDING)
        return next((trial for trial in pending if trial not in served), None)

    def _watch(self, running: Sequence[Trial]) -> None:
        now = time.monotonic()
        # Was the driver stopped or busy itself, reports may wait for it to take them.
        heard = {} if now - self._looked_at > LOOK_EVERY_S else self._heard
        self._looked_at = now
        self._heard = {trial.trial_id: heard.get(trial.trial_id, now) for trial in running}
        for trial in running:
            if now - self._heard[trial.trial_id] > self._silent_s:
                self._end_client(trial)
                self._heard[trial.trial_id] = now

    def _end_client(self, trial: Trial) -> None:
        actor = trial.temporary_state.ray_actor
        logger.warning("%s: its client hangs, and is ended", trial.trial_id)
        if actor is not None:
            ray.kill(actor)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its set-up for its own way to resume, which is not ours.
        return {}
