"""What every merge method declares: its coefficients, and the models it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Quantity
from safemerge.config.coefficient import Coefficient, Number, layerwise_fields
from safemerge.config.method_row import Source, Usual

Origin = Literal["zero", "base"]
"""What directions are measured from: zero (whole weights), or the base (task vectors)."""

Vectors = Literal["tensor", "rows", "columns"]
"""What has a direction of its own: a whole tensor, each run along its last axis, or along its
first."""


WEIGHTS, LAMBDA = Usual(-2.0, 2.0), Usual(0.0, 2.0)
DENSITY = Usual(0.0, 1.0, low_included=False)
"""Ranges worth searching."""


class MethodSpec(StrictModel):
    """What every merge method shares: which fields are coefficients, which models it names."""

    source: ClassVar[Source]
    """Whose method it is."""
    takes_base: ClassVar[bool] = False
    """Whether the base may be one of the merged models."""
    density_by_expert: ClassVar[bool] = False
    """Whether a mapping of densities is by expert, not by layer group."""
    statistic: ClassVar[Quantity | None] = None
    """What must have been measured of every model that is merged."""

    def coefficients(self) -> Iterator[tuple[str, Number]]:
        """Yield (dotted field, coefficient) for every layer-wise coefficient.

        Whole numbers and flags, which hold for all layers, are not among them.
        """
        layerwise = layerwise_fields(type(self))
        for field, info in type(self).model_fields.items():
            value = getattr(self, field)
            label = info.alias or field
            by_model = field in BY_EXPERT or (field == "density" and isinstance(value, dict))
            if field == "weights" or (by_model and value is not None):
                yield from ((f"{label}.{name}", item) for name, item in value.items())
            elif field in layerwise:
                yield label, value

    def model_names(self) -> frozenset[str]:
        """Names of the models that the method merges."""
        models = getattr(self, "models", None)
        return frozenset(getattr(self, "weights", {}) if models is None else models)


BY_EXPERT = frozenset({"epsilon_by_expert", "gamma_by_expert"})
"""Fields that map an expert's name to a layer-wise value."""


class MeanSpec(MethodSpec):
    """Weights of whole models, the base among them."""

    takes_base: ClassVar[bool] = True

    weights: Annotated[dict[str, Coefficient], WEIGHTS] = Field(min_length=1)
    """Weight by model name, ``base`` model included by its own name; unnamed models get 0."""


class TaskVectorSpec(MethodSpec):
    """Weights of experts and a scale of the merged task vector."""

    weights: Annotated[dict[str, Coefficient], WEIGHTS] = Field(min_length=1)
    """Weight by expert name; experts left out get 0."""
    lambda_: Annotated[Coefficient, LAMBDA] = Field(default=1.0, alias="lambda")
    """Scale of the merged task vector, usually in [0, 2]."""
