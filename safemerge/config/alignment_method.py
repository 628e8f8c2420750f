"""Alignment methods of other packages: one decorated function gives name, parameters, gradient.

::

    @alignment_method("sharpness_aware")
    def sharpness_aware(
        step: AlignmentStep, *, radius: Annotated[float, Range(0, 1)] = 0.05
    ) -> Gradient:
        \"\"\"Alignment at the worst weights nearby.\"\"\"
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, ValidationError, create_model, field_validator

from safemerge import plugins
from safemerge.config.alignment import SECTIONS, AlignSpec, HarmfulAlign, alignment_row
from safemerge.config.base import StrictModel
from safemerge.config.method_row import MethodRow, Source
from safemerge.config.signature import check_name, keyword_fields, positional_parameters
from safemerge.errors import ConfigError


class AddedAlign(AlignSpec):
    """A stage of another package's method; each has a model of its own (`alignment_method`)."""

    plugin: str | None = Field(default=None, validate_default=True)
    """Written by safemerge: the package and version that the method comes from."""

    @field_validator("plugin")
    @classmethod
    def _same_version(cls, recorded: str | None) -> str:
        name = cls.method_name()
        try:
            found = plugins.find(plugins.ALIGNMENT_METHODS, name)
            return plugins.checked_stamp(found.stamp, recorded, where=f"method '{name}'")
        except ConfigError as error:
            raise ValueError(error.message) from error

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the function."""
        section = getattr(self, self.method)
        return {name: getattr(section, name) for name in type(section).model_fields}

    def loaded(self) -> AlignmentMethod:
        """Import the method."""
        return load_alignment_method(self.method)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes by name: each imports the method from its own package."""
        return AlignSpec.model_validate_json, (json.dumps(self.resolved()),)


class AddedHarmfulAlign(AddedAlign, HarmfulAlign):
    """The same, of a method that looks at harmful data as well."""


class AlignmentMethod(NamedTuple):
    """What `alignment_method` makes of a function; calling it calls the function."""

    name: str
    function: Callable[..., Any]
    """Takes a `safemerge.extension.AlignmentStep` and gives a `safemerge.extension.Gradient`."""
    spec: type[AddedAlign]

    def __call__(self, step: Any, **parameters: Any) -> Any:
        """Call the function."""
        return self.function(step, **parameters)

    @property
    def row(self) -> MethodRow:
        """Its row in the table of methods."""
        return alignment_row(self.spec)


class _Settings(StrictModel):
    """Base of the sections of added methods."""

    model_config: ClassVar = {"use_attribute_docstrings": False}


def alignment_method(
    name: str, *, harmful: bool = False, title: str = "", citation: str = "", url: str = ""
) -> Callable[[Callable[..., Any]], AlignmentMethod]:
    """Make an alignment method of a function that gives one step's gradient.

    The function takes one `safemerge.extension.AlignmentStep` and returns a
    `safemerge.extension.Gradient`: what the optimiser, after clipping, follows. It may take
    gradients on the step's rows as often as it needs to, at shifted weights too. It depends on
    nothing but the step, so that a resumed stage ends where a whole one does.

    Keyword-only parameters become keys of the file's section of the method's name: a ``float`` or
    an ``int``, with allowed values as ``Annotated[float, Range(0, 1)]``; a ``bool``; a
    ``Literal``. Their descriptions are taken from the docstring's ``Args``, the summary from its
    first line.

    Args:
        name: What files call it: lower-case letters, digits and underscores.
        harmful: Whether the stage declares harmful data, which `AlignmentStep.harmful` then holds.
        title: Name for people.
        citation: Whose method it is.
        url: Where it is described.

    Returns:
        A decorator, whose result is what the entry point in the group
        ``safemerge.alignment_methods`` must name.

    Raises:
        ConfigError: If the name or the signature is not of this form.
    """

    def declare(function: Callable[..., Any]) -> AlignmentMethod:
        where = f"alignment method '{name}'"
        check_name(name, where=where)
        if name in AddedAlign.model_fields or name in SECTIONS:
            raise ConfigError(f"{where}: must be no key of a stage's file; got {name}. Rename it.")
        if len(positional_parameters(function)) != 1:
            given = ", ".join(positional_parameters(function)) or "none"
            raise ConfigError(
                f"{where}: must take one AlignmentStep; got {given}. Make others keyword-only."
            )
        fields = keyword_fields(function, where=where, reserved=dir(_Settings))
        summary = function.__doc__ or f"{name}, of {function.__module__}."
        settings: Any = create_model(
            f"Settings_{name}",
            __base__=_Settings,
            __module__=__name__,
            __doc__=f"Settings of {name}.",
            **fields,
        )
        own = f"Settings of ``{name}``."
        try:
            section: Any = (settings, Field(default=settings(), description=own))
        except ValidationError:  # a parameter without a default must be given
            section = (settings, Field(description=own))
        declared: dict[str, Any] = {"method": (Literal[name], ...), name: section}
        spec: type[AddedAlign] = create_model(
            f"Added_{name}",
            __base__=AddedHarmfulAlign if harmful else AddedAlign,
            __module__=__name__,
            __doc__=summary,
            **declared,
        )
        spec.source = Source(title or name, citation or function.__module__, url, "")
        spec.sections = ("harmful", name) if harmful else (name,)
        return AlignmentMethod(name, function, spec)

    return declare


def load_alignment_method(name: str, *, builtin: Any = ()) -> AlignmentMethod:
    """Import an alignment method of another package.

    Raises:
        ConfigError: If there is none of that name, it cannot be imported, or the entry point
            names something else than what `alignment_method` made.
    """
    found = plugins.load(plugins.ALIGNMENT_METHODS, name, builtin=builtin)
    if not isinstance(found, AlignmentMethod) or found.name != name:
        got = found.name if isinstance(found, AlignmentMethod) else type(found).__name__
        raise ConfigError(
            f"alignment method '{name}': its entry point must name a function decorated with "
            f"@alignment_method({name!r}); got {got!r}."
        )
    return found
