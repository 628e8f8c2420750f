"""The Tune trainable: a thin client of the evaluator that holds no model and is reused.

Its process imports neither torch nor the search: each client would pay for them again.
"""

from __future__ import annotations

import traceback
from typing import Any

from ray import serve, tune

from safemerge.distributed.request import DEPLOYMENT, LOOK_EVERY_S, Request
from safemerge.errors import EngineError, NoReplicaError, UserError
from safemerge.records import RungResult

RESULT, FAILURE, RETRY = "safemerge_result", "safemerge_failure", "safemerge_retry"
"""Keys of a trial's last report: a result, or why there is none and whether to try again."""
WRONG = "safemerge_wrong_input"
"""Key beside them: whether the user's files are at fault, so that no other trial can do better."""
NO_REPLICA = "safemerge_no_replica"
"""Key beside them: whether no replica took the recipe, so that it was never tried."""
SCREENED = "screened"
"""Key of a trial's configuration: whether its losses on the low rung are known."""
RUNG = "safemerge_rung"
"""Key of a trial's report before, if the study has a low rung: its losses there."""
WAITS = "safemerge_waits"
"""Key of a report without news: the client lives, and waits."""


class CandidateTrainable(tune.Trainable):
    """A trial sends its recipe and waits for the scores; with a rung, for its losses before.

    It reports every `LOOK_EVERY_S` seconds at the latest, so that a client that hangs is noticed.
    """

    def setup(
        self, config: dict[str, Any], *, app: str, timeout_s: float, has_rung: bool = False
    ) -> None:
        """Take the trial's recipe and find the evaluator.

        Args:
            config: The searcher's proposal.
            app: Name of the Serve application.
            timeout_s: Longest time for one candidate at a replica.
            has_rung: Whether candidates are screened first.
        """
        self._timeout_s = timeout_s
        self._has_rung = has_rung
        self._handle = serve.get_deployment_handle(DEPLOYMENT, app_name=app)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's recipe; the process is kept."""
        self._recipe = new_config["recipe"]
        self._screens = self._has_rung and not new_config[SCREENED]
        self._request: Request | None = None
        return True

    def step(self) -> dict[str, Any]:
        """Screen or score the recipe; a failure becomes a report with its reason."""
        try:
            if self._request is None:
                self._request = self._sent()
            found = self._request.wait(LOOK_EVERY_S)
        except Exception as error:  # noqa: BLE001
            # A border: whatever went wrong ends this trial with its reason.
            reason = str(error) or "".join(traceback.format_exception_only(error)).strip()
            return {
                FAILURE: reason,
                RETRY: isinstance(error, EngineError),
                WRONG: isinstance(error, UserError),
                NO_REPLICA: isinstance(error, NoReplicaError),
                "done": True,
            }
        if found is None:
            return {WAITS: True}
        self._request, self._screens = None, False
        key = RUNG if isinstance(found, RungResult) else RESULT
        return {key: found.model_dump_json(), "done": key == RESULT}

    def _sent(self) -> Request:
        if self._screens:
            response = self._handle.screen.remote(self._recipe)
        else:
            response = self._handle.score.remote(self._recipe, "search")
        return Request(response, timeout_s=self._timeout_s, what="evaluator")

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a trial has no state but its recipe."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""
