"""Metrics that other packages add: a function of a suite's scored answers, with a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from safemerge import plugins
from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name
from safemerge.config.metric import Direction, Metric, Role, Unit
from safemerge.errors import ConfigError

Compute = Callable[[Sequence[Any]], "Sequence[float | None] | float"]


@dataclass(frozen=True)
class AddedMetric:
    """A metric's row and what computes it; call it as the function that it was made from."""

    row: Metric
    compute: Compute

    def __call__(self, answers: Sequence[Any]) -> Sequence[float | None] | float:
        """Compute it; see `metric`."""
        return self.compute(answers)


def metric(
    *,
    direction: Direction,
    role: Role,
    unit: Unit = "share",
    is_main: bool = True,
    broken_above: float | None = None,
) -> Callable[[Compute], AddedMetric]:
    """Make a function of scored answers a metric, to be named by an entry point.

    The function takes a sequence of `safemerge.records.Answer`, those of one suite and split that
    have a verdict, in order; it is never called with none. It returns either

    - a value for each answer, or None where it has none (counted as unscored): the metric is
      their mean, with an interval and paired comparisons as the built-in ones have; or
    - one number for all of them: its interval is a jackknife's over prompts, so the function is
      called about once a prompt with the others, and candidates are not compared in pairs.

    It must be deterministic. It runs in every evaluator replica, so its package is installed on
    every node. The first line of its docstring is its summary.

    Args:
        direction: Which way is better.
        role: What it is about; ``harm`` makes it an objective that ``--pick safest`` takes.
        unit: ``share`` for values in [0, 1], printed in percent; ``number`` for any other.
        is_main: Whether short lists show it.
        broken_above: Above this mean a candidate counts as broken.
    """

    def made(function: Compute) -> AddedMetric:
        lines = (function.__doc__ or "").strip().splitlines()
        summary = lines[0] if lines else ""
        name = getattr(function, "__name__", "metric")
        row = Metric(name, direction, role, unit, summary, is_main, broken_above)
        return AddedMetric(row, function)

    return made


def load_metric(name: str) -> AddedMetric:
    """Import the metric that an installed package adds under a name.

    Raises:
        ConfigError: If there is none, or it was not made by `metric`.
    """
    found = plugins.load(plugins.METRICS, name)
    if not isinstance(found, AddedMetric):
        raise ConfigError(
            f"metric '{name}': must be a function with safemerge.extension.metric as its "
            f"decorator; got {type(found).__name__}."
        )
    return replace(found, row=replace(found.row, name=name))


class AddedMetricRef(StrictModel):
    """A metric of an installed package, of one suite's answers; its name alone will do."""

    use: Name
    """The name of its entry point, and within the suite."""
    plugin: str | None = Field(default=None, validate_default=True)
    """Written by safemerge: the package and version that it comes from."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, document: Any) -> Any:
        return {"use": document} if isinstance(document, str) else document

    @field_validator("plugin")
    @classmethod
    def _same_version(cls, recorded: str | None, info: ValidationInfo) -> str | None:
        name = info.data.get("use")
        if name is None:
            return recorded
        try:
            load_metric(name)
            current = plugins.find(plugins.METRICS, name).stamp
            return plugins.checked_stamp(current, recorded, where=f"metric '{name}'")
        except ConfigError as error:
            raise ValueError(error.message) from error

    def loaded(self) -> AddedMetric:
        """Import the metric."""
        return load_metric(self.use)
