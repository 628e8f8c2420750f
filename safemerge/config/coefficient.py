"""Numbers that may differ from layer to layer, and the groups of tensors they go by."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, model_validator

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name

DEFAULT_GROUP = "default"
"""The key that covers every tensor no layer group matches."""

ModuleKind = Literal["attention", "mlp", "embeddings", "norms"]
"""What a tensor does in a decoder; ``embeddings`` takes in the output head."""


def _form(value: object) -> str:
    if isinstance(value, dict):
        return "mapping"
    return "anchors" if isinstance(value, list) else "number"


# A tagged union reports the problem of the one form that was meant, not of all.
FORM = Discriminator(_form)
"""Tells number, list (``anchors``) and mapping apart."""

Anchors = Literal["depth", "mergekit"]
"""Where tensors outside the layers read anchors: ``depth``, what comes before the layers at the
first and what comes after them at the last; ``mergekit``, both at the first, as mergekit 0.1.5
(which in a model of one layer reads the last for that layer)."""

_T = TypeVar("_T")

ByDepth = Annotated[
    Annotated[_T, Tag("number")] | Annotated[list[_T], Tag("anchors"), Field(min_length=2)],
    FORM,
]
"""One number, or anchors: values at equal steps from the first layer to the last, linear in
between. Embeddings take the first anchor, other tensors outside the layers the last, unless the
recipe's `anchors` say otherwise."""

Layerwise = Annotated[
    Annotated[_T, Tag("number")]
    | Annotated[list[_T], Tag("anchors"), Field(min_length=2)]
    | Annotated[dict[str, ByDepth[_T]], Tag("mapping")],
    FORM,
]
"""As `ByDepth`, or one such value per layer group (key ``default`` for the rest)."""

Density = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

Coefficient = Layerwise[float]
"""One number for the whole model, anchors across its layers, or either per layer group."""

Number = float | list[float] | dict[str, float | list[float]]
"""A coefficient's plain form."""


class LayerGroup(StrictModel):
    """A named set of tensors that share coefficients; every rule given must hold."""

    name: Name
    layers: str | None = Field(default=None, pattern=r"^\d+(-\d+)?$")
    """Decoder layers, 0-indexed and inclusive, e.g. ``0-9``, or one, e.g. ``4``."""
    kind: ModuleKind | None = None
    """Kind of module, read from the tensor's name."""
    tensors: list[str] | None = Field(default=None, min_length=1)
    """Glob patterns on tensor names, e.g. ``*.self_attn.*``; one must match."""
    outside: Literal["before", "after"] | None = Field(
        default=None, exclude_if=lambda given: given is None
    )
    """Tensors outside the layers: ``before`` them (embeddings), or ``after`` (final norm, output
    head)."""
    optional: bool = Field(default=False, exclude_if=lambda given: not given)
    """Whether the group may match no tensor, as filters of mergekit files may; else that is an
    error."""

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        if not self.rule:
            raise ValueError(
                "at least one of layers, kind, tensors, outside must be given. Add one."
            )
        if self.name == DEFAULT_GROUP:
            raise ValueError(
                f"the name '{DEFAULT_GROUP}' stands for the rest; got it for a group."
            )
        if self.layers is not None and self.layer_range[0] > self.layer_range[1]:
            raise ValueError(f"first layer must not exceed the last; got {self.layers!r}.")
        return self

    @property
    def layer_range(self) -> tuple[int, int]:
        """First and last layer, inclusive; only for a group given by layers."""
        first, _, last = (self.layers or "").partition("-")
        return int(first), int(last or first)

    @property
    def rule(self) -> str:
        """The group's rules as one line, for messages."""
        outside = f"{self.outside} the layers" if self.outside else None
        given = (self.layers, self.kind, ", ".join(self.tensors or ()), outside)
        return " and ".join(item for item in given if item)


@cache
def layerwise_fields(spec: type[StrictModel]) -> frozenset[str]:
    """Return the fields of a declaration that may differ from layer to layer, by their types."""
    return frozenset(
        name
        for name, field in spec.model_fields.items()
        if field.discriminator is FORM or FORM in field.metadata
    )


def leaves(number: Number) -> Iterator[float]:
    """Yield every number inside a coefficient."""
    if isinstance(number, dict):
        for item in number.values():
            yield from leaves(item)
    elif isinstance(number, list):
        yield from number
    else:
        yield number


def has_anchors(number: Number) -> bool:
    """Tell whether a coefficient changes across layers by itself."""
    if isinstance(number, dict):
        return any(isinstance(item, list) for item in number.values())
    return isinstance(number, list)
