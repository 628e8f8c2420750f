"""How one value of a search space varies: between two numbers, or among choices."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from safemerge.config.base import StrictModel


class FloatRange(StrictModel):
    """A real parameter in [low, high], both included."""

    low: float
    high: float
    log: bool = False
    """Sample in the logarithm; needs low > 0."""
    step: float | None = Field(default=None, gt=0)
    """Grid spacing from `low`; continuous if left out."""
    knots: list[float] | None = Field(default=None, exclude_if=lambda given: given is None)
    """For settings of training files: the values that are trained, ascending, the first `low` and
    the last `high`."""
    between: Literal["snap", "interpolate"] = Field(
        default="snap", exclude_if=lambda given: given == "snap"
    )
    """What a value between two knots means: ``snap`` takes the nearer one (in the logarithm with
    `log`); ``interpolate`` takes the weights between theirs, on a straight line, and what comes to
    the front with such weights is trained at its own value and scored again."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high; got low={self.low}, high={self.high}.")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0; got low={self.low}.")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other. Drop one.")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError(
                f"step must not exceed high - low; got step={self.step}, "
                f"low={self.low}, high={self.high}."
            )
        self._check_knots()
        return self

    def _check_knots(self) -> None:
        if self.knots is None:
            if self.between != "snap":
                raise ValueError(
                    f"between says what lies between knots; got {self.between!r} without any. "
                    "Add knots: the values to train."
                )
            return
        if self.step is not None:
            raise ValueError("knots and step exclude each other. Drop one.")
        ascending = all(a < b for a, b in pairwise(self.knots))
        if len(self.knots) < 2 or not ascending or self.span != (self.knots[0], self.knots[-1]):
            raise ValueError(
                f"knots must ascend from low to high; got {self.knots} for low={self.low}, "
                f"high={self.high}."
            )

    @property
    def interpolates(self) -> bool:
        """Whether a value between two knots stands for weights between theirs."""
        return self.between == "interpolate"

    @property
    def span(self) -> tuple[float, float]:
        """`low` and `high`."""
        return self.low, self.high

    def settled(self, value: float) -> float:
        """Return the value that a drawn number stands for.

        Args:
            value: Number in [low, high].

        Returns:
            With knots that snap: the nearest. With knots that are interpolated between: the
            number to three digits, so that what has to be trained has a name. Else the number.
        """
        if self.knots is None:
            return value
        if self.between == "snap":
            return min(self.knots, key=lambda knot: abs(self._scaled(knot) - self._scaled(value)))
        short = min(max(float(f"{value:.3g}"), self.low), self.high)
        return next((knot for knot in self.knots if math.isclose(knot, short)), short)

    def neighbours(self, value: float) -> tuple[float, float, float]:
        """Return the knots around a value and where it lies between them.

        Args:
            value: Number in [low, high] that is no knot.

        Returns:
            Lower knot, upper knot, and the share of the upper one: linear, in the logarithm with
            `log`.
        """
        knots = self.knots or []
        high = next(place for place, knot in enumerate(knots) if knot > value)
        low, high_knot = knots[high - 1], knots[high]
        width = self._scaled(high_knot) - self._scaled(low)
        return low, high_knot, (self._scaled(value) - self._scaled(low)) / width

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value

    def ends(self) -> tuple[float, float]:
        """The two extreme values."""
        return self.low, self.high

    def grid(self) -> tuple[float, ...] | None:
        """Every value, if there is a step; the knots, if there are any; None for a continuum."""
        if self.knots is not None:
            return tuple(self.knots)
        if self.step is None:
            return None
        low, step = Decimal(str(self.low)), Decimal(str(self.step))
        count = math.floor((Decimal(str(self.high)) - low) / step)
        return tuple(float(low + place * step) for place in range(count + 1))


class Choice(StrictModel):
    """A categorical parameter."""

    choices: list[float | int | bool | str] = Field(min_length=1)

    @property
    def interpolates(self) -> bool:
        """Nothing lies between choices."""
        return False

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        # NOTE: as Optuna compares them, so that 1 and 1.0, or 1 and true, are one choice.
        for index, choice in enumerate(self.choices):
            if choice in self.choices[:index]:
                raise ValueError(f"choices must be distinct; got {choice!r} twice.")
        return self

    def ends(self) -> tuple[float | int | bool | str, ...]:
        """Every choice: each must make a legal recipe."""
        return tuple(self.choices)

    def grid(self) -> tuple[float | int | bool | str, ...]:
        """Every choice."""
        return tuple(self.choices)


def _range_kind(value: object) -> str:
    given = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    return "choice" if "choices" in given else "range"


Range = Annotated[
    Annotated[FloatRange, Tag("range")] | Annotated[Choice, Tag("choice")],
    Discriminator(_range_kind),
]
"""How one value varies: between two numbers, or among choices."""
