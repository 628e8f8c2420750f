"""Booster's lambda and alpha over the steps of a stage: phases, and an adaptive lambda."""

from __future__ import annotations

from typing import NamedTuple

from safemerge.config.alignment import BoosterSpec


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

    Args:
        spec: Declared strengths, phases and adaptation.
    """

    def __init__(self, spec: BoosterSpec) -> None:
        self._spec = spec
        self._reference: float | None = None
        self._average: float | None = None
        self._alpha: float | None = None

    def at(self, step: int) -> Strength:
        """Return the settings of a step (0-indexed); see `seen` for what they depend on."""
        declared = self._declared(step)
        adaptive = self._spec.adaptive
        if adaptive is None or declared.regularizer_strength == 0:
            return declared
        factor = 1.0
        same_alpha = self._alpha == declared.perturbation_step
        if same_alpha and self._reference is not None and self._average is not None:
            factor = (self._reference / self._average) ** adaptive.power
        strength = min(max(declared.regularizer_strength * factor, adaptive.low), adaptive.high)
        return declared._replace(regularizer_strength=strength)

    def seen(self, step: int, difference_ratio: float) -> None:
        """Take a step's s into account for the steps after it."""
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

    def state_dict(self) -> dict[str, float | None]:
        """Return what the next steps depend on."""
        return {"reference": self._reference, "average": self._average, "alpha": self._alpha}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Take a state that `state_dict` returned."""
        self._reference = state["reference"]
        self._average = state["average"]
        self._alpha = state["alpha"]
