"""What a stage measured and went by, for its marker file and in lines for people."""

from __future__ import annotations

from collections import deque
from typing import Any

from safemerge.config.alignment import AlignSpec, BoosterAlign
from safemerge.config.training import FinetuneSpec
from safemerge.training.adaptive import AVERAGED_STEPS
from safemerge.training.sft import StepMetrics

HEAVY_PENALTY = 1.0
"""Nats from which a penalty above the alignment loss is reported: settings that made more were
worse than plain alignment (design/alignment.md, "Calibration")."""


class StageMeasures:
    """Collects a stage's record while it trains.

    Args:
        spec: The stage.
    """

    def __init__(self, spec: FinetuneSpec | AlignSpec) -> None:
        self._spec = spec
        self._last: deque[StepMetrics] = deque(maxlen=AVERAGED_STEPS)

    def add(self, metrics: StepMetrics) -> None:
        """Take a step into account."""
        self._last.append(metrics)

    def record(self, *, steps: int, refusal: float | None, num_asked: int) -> dict[str, Any]:
        """Return the record.

        Args:
            steps: Steps that the stage took.
            refusal: Share of the held-out requests that the result refuses; None: not asked.
            num_asked: These requests.

        Returns:
            Numbers by name; empty for a stage that went by its file alone.
        """
        spec, found = self._spec, dict[str, Any]()
        if not isinstance(spec, AlignSpec):
            return found
        if spec.until is not None and refusal is not None:
            found |= {"steps": steps, "max_steps": spec.steps, "num_asked": num_asked}
            found |= {"refusal": refusal, "wanted_refusal": spec.until.refusal}
        if not isinstance(spec, BoosterAlign) or not self._last:
            return found
        penalties = [item.penalty for item in self._last if item.penalty is not None]
        if penalties:
            found["penalty"] = sum(penalties) / len(penalties)
            found["alignment_loss"] = sum(item.loss for item in self._last) / len(self._last)
        strength = self._last[-1].regularizer_strength
        if spec.booster.calibrate is not None and strength:
            found |= {"lambda": strength, "alpha": spec.booster.perturbation_step}
            found["harmful_fall"] = spec.booster.calibrate.penalty_nats / strength
        return found


def measure_lines(record: dict[str, Any]) -> list[str]:
    """Return a stage's record in lines for people.

    Args:
        record: What `StageMeasures.record` returned.
    """
    lines = []
    if "lambda" in record:
        lines.append(
            f"booster.lambda set to {record['lambda']:.4g}: the simulated step, alpha "
            f"{record['alpha']:g}, lowers the harmful loss by {record['harmful_fall']:.3g} nats"
        )
    if record.get("penalty", 0.0) > max(HEAVY_PENALTY, record.get("alignment_loss", 0.0)):
        lines.append(
            f"warning: Booster's penalty, {record['penalty']:.3g} nats in the last steps, dwarfs "
            f"the alignment loss, {record['alignment_loss']:.3g}: the model may have learned "
            "little else. Lower booster.lambda or alpha, or use booster.calibrate"
        )
    if "refusal" in record:
        passed = record["refusal"] >= record["wanted_refusal"]
        lines.append(
            f"{'' if passed else 'warning: '}{record['refusal']:.1%} of {record['num_asked']} "
            f"held-out requests refused after {record['steps']} of at most "
            f"{record['max_steps']} steps"
            + ("" if passed else f", fewer than until.refusal {record['wanted_refusal']:.1%}")
        )
    return lines
