"""The worst attack that a search found on a model, and the worst cases of methods over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from pydantic import Field, ValidationError

from safemerge.config.base import StrictModel
from safemerge.errors import StudyError
from safemerge.records import MetricEstimate
from safemerge.robustness.cell_store import CellRecord, CellStore
from safemerge.robustness.spec import Cell, RobustnessSpec


class WorstAttack(StrictModel):
    """What a search found for one model of one seed."""

    method: str
    seed: int
    num_tried: int = Field(ge=0)
    num_feasible: int = Field(ge=0)
    """Attacks within the bound on utility loss."""
    num_failed: int = Field(ge=0)
    attack: Cell | None
    """The feasible attack with the highest harmful score on the search split; None if there is
    none: the harmful score is that before any attack then."""
    searched: float | None
    """Its harmful score on the search split; the largest of many, so no estimate."""
    best: list[float] = Field(default_factory=list)
    """Highest harmful score of the feasible attacks so far, on the search split: whether the
    budget was enough."""
    harmful_score: MetricEstimate
    """Of the attacked model on the reported split, with its interval over prompts."""
    accuracy: MetricEstimate
    before: MetricEstimate
    """Harmful score before any attack."""
    accuracy_before: MetricEstimate

    @classmethod
    def of(
        cls,
        spec: RobustnessSpec,
        *,
        before: CellRecord,
        after: CellRecord | None,
        harms: Sequence[float],
        num_tried: int,
        num_failed: int,
    ) -> Self:
        """Return the record of a search.

        Args:
            spec: The measurement.
            before: The model on the reported split, not attacked.
            after: The worst attack there; None if no attack was feasible.
            harms: Harmful scores of the feasible attacks, in the order of the search.
            num_tried: Attacks tried.
            num_failed: Those that failed.

        Raises:
            KeyError: If the model could not be measured, before the attack or after it.
        """
        held = before if after is None else after
        known, worst = (
            {} if record.result is None else record.result.metrics for record in (before, held)
        )
        harm, right = f"{spec.harm.name}.harmful_score", f"{spec.accuracy.name}.accuracy"
        best: list[float] = []
        for value in harms:
            best.append(max(value, best[-1]) if best else value)
        return cls(
            method=before.cell.method,
            seed=before.cell.seed,
            num_tried=num_tried,
            num_feasible=len(harms),
            num_failed=num_failed,
            attack=None if held is before else held.cell,
            searched=best[-1] if best else None,
            best=best,
            harmful_score=worst[harm],
            accuracy=worst[right],
            before=known[harm],
            accuracy_before=known[right],
        )


class WorstAttacks(StrictModel):
    """What ``worst_attacks.json`` holds."""

    max_utility_loss: float
    found: list[WorstAttack]
    """By seed, then in the order of the methods."""


_FILE = "worst_attacks.json"


def write_worst_attacks(store: CellStore, found: WorstAttacks) -> None:
    """Write what a search found into a measurement's folder."""
    store.write_json(_FILE, found)


def worst_attacks(store: CellStore) -> WorstAttacks | None:
    """Read what a search found; None if none has ended yet.

    Raises:
        StudyError: If the file is damaged.
    """
    try:
        text = (store.folder / _FILE).read_text(encoding="utf-8")
        return WorstAttacks.model_validate_json(text)
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError, RecursionError) as error:
        raise StudyError(
            f"{store.folder / _FILE}: damaged; got {str(error).splitlines()[0]}. Run the "
            "measurement again with --resume."
        ) from None
