"""Booster's lambda and alpha over a stage's steps: phases, an adaptive lambda, a measured one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from safemerge.config.alignment import BoosterSpec, CalibrateSpec
from safemerge.errors import TrainingError

AVERAGED_STEPS = 10
"""Plain steps, the last ones, that a measured lambda is averaged over."""


class Strength(NamedTuple):
    """The two settings of one Booster step."""

    regularizer_strength: float
    """Lambda."""
    perturbation_step: float
    """Alpha."""


class StrengthSchedule:
    """Gives each step its lambda and alpha.

    The adaptive factor of lambda is (reference / average)**power, where average runs over
    s = |g - g'| / |g| of the steps so far and reference is s at the first step; both skip steps
    whose s is 0 (alpha 0, or no harmful gradient), which say nothing. A new phase with another
    alpha starts both anew, since s grows with alpha.

    A measured lambda is 0 for `plain_steps`, then `penalty_nats` over the mean fall h(w) - h(w')
    of the harmful loss in the last `AVERAGED_STEPS` of them.

    Args:
        spec: Declared strengths, phases, adaptation and calibration.
    """

    def __init__(self, spec: BoosterSpec) -> None:
        self._spec = spec
        self._reference: float | None = None
        self._average: float | None = None
        self._alpha: float | None = None
        self._falls: list[float] = []

    def at(self, step: int) -> Strength:
        """Return the settings of a step (0-indexed); see `seen` for what they depend on.

        Raises:
            TrainingError: If lambda is to be measured and the harmful loss did not fall.
        """
        declared = self._declared(step)
        if self._spec.calibrate is not None:
            measured = self._measured(self._spec.calibrate, step)
            return declared._replace(regularizer_strength=measured)
        adaptive = self._spec.adaptive
        if adaptive is None or declared.regularizer_strength == 0:
            return declared
        factor = 1.0
        same_alpha = self._alpha == declared.perturbation_step
        if same_alpha and self._reference is not None and self._average is not None:
            factor = (self._reference / self._average) ** adaptive.power
        strength = min(max(declared.regularizer_strength * factor, adaptive.low), adaptive.high)
        return declared._replace(regularizer_strength=strength)

    def _measured(self, calibrate: CalibrateSpec, step: int) -> float:
        if step < calibrate.plain_steps:
            return 0.0
        fall = self.fall
        if fall is None or fall <= 0:
            raise TrainingError(
                "booster.calibrate: the harmful loss must fall in the simulated step; got "
                f"{0.0 if fall is None else fall:.3g} nats on average. Raise alpha, or "
                "plain_steps, so that the model has refusals to lose."
            )
        return calibrate.penalty_nats / fall

    @property
    def fall(self) -> float | None:
        """Mean of h(w) - h(w') over the steps that measure lambda, in nats; None before any."""
        return sum(self._falls) / len(self._falls) if self._falls else None

    def seen(self, step: int, difference_ratio: float, *, fall: float = 0.0) -> None:
        """Take into account for the steps after it what a step saw.

        Args:
            step: The step, 0-indexed.
            difference_ratio: Its s = |g - g'| / |g|.
            fall: Its h(w) - h(w'), in nats.
        """
        calibrate = self._spec.calibrate
        if calibrate is not None and step < calibrate.plain_steps:
            self._falls = [*self._falls, fall][-AVERAGED_STEPS:]
        adaptive = self._spec.adaptive
        if adaptive is None or not difference_ratio > 0:
            return
        alpha = self._declared(step).perturbation_step
        if self._alpha != alpha or self._average is None:
            self._alpha, self._reference, self._average = alpha, difference_ratio, difference_ratio
            return
        self._average += (1 - adaptive.decay) * (difference_ratio - self._average)

    def _declared(self, step: int) -> Strength:
        spec = self._spec
        end = 0
        for phase in spec.phases:
            end += phase.steps
            if step < end:
                given = (phase.regularizer_strength, phase.perturbation_step)
                usual = (spec.regularizer_strength, spec.perturbation_step)
                return Strength(
                    *(u if g is None else g for g, u in zip(given, usual, strict=True))
                )
        return Strength(spec.regularizer_strength, spec.perturbation_step)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next steps depend on."""
        return {
            "reference": self._reference,
            "average": self._average,
            "alpha": self._alpha,
            "falls": list(self._falls),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state that `state_dict` returned; versions without ``falls`` measured none."""
        self._reference = state["reference"]
        self._average = state["average"]
        self._alpha = state["alpha"]
        self._falls = list(state.get("falls", ()))
