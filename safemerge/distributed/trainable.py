"""The Tune trainable: a thin client of the evaluator that holds no model and is reused."""

from __future__ import annotations

import traceback
from typing import Any

from ray import serve, tune

from safemerge.config.recipe import MergeRecipe
from safemerge.distributed.evaluator import DEPLOYMENT, score_through, screen_through
from safemerge.distributed.searcher import FAILURE, RESULT, RETRY, RUNG, SCREENED, WRONG
from safemerge.errors import EngineError, UserError
from safemerge.records import RungResult


class CandidateTrainable(tune.Trainable):
    """One trial is one step, send the recipe and wait for the scores; with a rung, one before."""

    def setup(
        self, config: dict[str, Any], *, app: str, timeout_s: float, has_rung: bool = False
    ) -> None:
        """Take the trial's recipe and find the evaluator.

        Args:
            config: The searcher's proposal.
            app: Name of the Serve application.
            timeout_s: Longest wait for one candidate.
            has_rung: Whether candidates are screened first.
        """
        self._recipe = config["recipe"]
        self._timeout_s = timeout_s
        self._has_rung = has_rung
        self._screens = has_rung and not config[SCREENED]
        self._handle = serve.get_deployment_handle(DEPLOYMENT, app_name=app)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial's recipe; the process is kept."""
        self._recipe = new_config["recipe"]
        self._screens = self._has_rung and not new_config[SCREENED]
        return True

    def step(self) -> dict[str, Any]:
        """Screen or score the recipe; a failure becomes a report with its reason."""
        recipe = MergeRecipe.model_validate_json(self._recipe)
        try:
            if self._screens:
                self._screens = False
                found = screen_through(self._handle, recipe, timeout_s=self._timeout_s)
                if isinstance(found, RungResult):
                    return {RUNG: found.model_dump_json()}
                return {RESULT: found.model_dump_json(), "done": True}
            result = score_through(self._handle, recipe, "search", timeout_s=self._timeout_s)
        except Exception as error:  # noqa: BLE001
            # A border: whatever went wrong ends this trial with its reason.
            reason = str(error) or "".join(traceback.format_exception_only(error)).strip()
            return {
                FAILURE: reason,
                RETRY: isinstance(error, EngineError),
                WRONG: isinstance(error, UserError),
                "done": True,
            }
        return {RESULT: result.model_dump_json(), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: a trial has no state but its recipe."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""
