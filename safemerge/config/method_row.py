"""A row of a method table: what `safemerge methods` says, derived from a method's declaration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast, get_args

if TYPE_CHECKING:
    from safemerge.config.base import StrictModel


class Source(NamedTuple):
    """Whose method it is."""

    title: str
    """Name for people."""
    citation: str
    url: str
    variant: str
    """Which library's variant it equals, and how it departs from the paper."""


class Usual(NamedTuple):
    """Values of a parameter that are worth searching; what is allowed may be more."""

    low: float
    high: float
    low_included: bool = True

    def __str__(self) -> str:
        return f"{'[' if self.low_included else '('}{self.low:g}, {self.high:g}]"


class MethodRow(NamedTuple):
    """One method: merging, a step, an optimiser or an alignment."""

    kind: str
    """``method``, ``step``, ``alignment``, or what a program adds, e.g. ``optimizer``."""
    name: str
    """Machine name, the discriminator of files."""
    spec: type[StrictModel]
    """Its declaration: parameters, their meaning and what they may be."""
    source: Source
    summary: str
    """What it does, in a sentence."""
    uses_base: bool
    """Whether task vectors from the base enter, rather than whole weights."""
    sections: tuple[str, ...] | None = None
    """Keys of `spec` whose own keys are the parameters; None if those of `spec` are."""

    @property
    def settings(self) -> Mapping[str, type[StrictModel]]:
        """Declarations of the parameters by what stands before their names in files."""
        if self.sections is None:
            return {"": self.spec}
        fields = self.spec.model_fields
        return {f"{key}.": cast("Any", fields[key].annotation) for key in self.sections}

    @property
    def usual(self) -> Mapping[str, Usual]:
        """Range worth searching by parameter, as files call it."""
        return {
            f"{prefix}{field.alias or name}": item
            for prefix, spec in self.settings.items()
            for name, field in spec.model_fields.items()
            for item in field.metadata
            if isinstance(item, Usual)
        }


def name_of(spec: type[StrictModel]) -> str:
    """Return a declaration's discriminator: the one choice of its field ``name``."""
    return str(get_args(spec.model_fields["name"].annotation)[0])


def summary_of(spec: type[StrictModel]) -> str:
    """Return the first line of a declaration's docstring."""
    return (spec.__doc__ or "").strip().splitlines()[0]


def rows_by_name(rows: Iterable[MethodRow]) -> Mapping[str, MethodRow]:
    """Return rows by name."""
    return MappingProxyType({row.name: row for row in rows})
