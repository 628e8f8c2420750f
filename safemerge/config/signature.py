"""A function's keyword-only parameters as keys of files, for what other packages add."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin
from typing import get_type_hints as type_hints

from pydantic import Field, TypeAdapter, ValidationError

from safemerge.config.coefficient import Layerwise
from safemerge.config.method_row import Usual
from safemerge.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Range(NamedTuple):
    """Allowed values of a number, which are also the range worth searching."""

    low: float
    high: float
    low_included: bool = True
    high_included: bool = True


def check_name(name: str, *, where: str) -> None:
    """Check that a name can stand in files.

    Raises:
        ConfigError: If it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: must be lower-case letters, digits and underscores; got {name!r}."
        )


def positional_parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the parameters that are not keyword-only, in order."""
    given = inspect.signature(function).parameters.values()
    return tuple(item.name for item in given if item.kind is not item.KEYWORD_ONLY)


def keyword_fields(
    function: Callable[..., Any],
    *,
    where: str,
    reserved: Collection[str] = (),
    layerwise: bool = False,
) -> dict[str, Any]:
    """Return the fields of a declaration for a function's keyword-only parameters.

    A parameter is a ``float`` or an ``int``, with allowed values as ``Annotated[float,
    Range(0, 1)]``; a ``bool``; or a ``Literal``. Its description is taken from the docstring's
    section ``Args``.

    Args:
        function: The function.
        where: Place named first in messages.
        reserved: Names that a parameter must not have.
        layerwise: Whether a ``float`` may differ by layer.

    Returns:
        Fields by name, as `pydantic.create_model` takes them.

    Raises:
        ConfigError: If the signature is not of this form, or a default is no allowed value.
    """
    try:
        hints = type_hints(function, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"{where}: annotations must be importable; got {error}. Import their types "
            "outside of TYPE_CHECKING."
        ) from error
    described = _described(function.__doc__ or "")
    fields = {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        if key in reserved:
            raise ConfigError(
                f"{where}: the parameter must not be named {key}, which every method has. "
                "Rename it."
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        meaning = described.get(key, f"See {function.__module__}.")
        annotation = _annotated(hints, key, where=where, layerwise=layerwise)
        _check_default(annotation, default, where=f"{where}, parameter '{key}'")
        fields[key] = (annotation, Field(default, description=meaning))
    return fields


def _annotated(hints: Mapping[str, Any], key: str, *, where: str, layerwise: bool) -> Any:
    hint, limits = _hint(hints.get(key))
    if hint is bool or get_origin(hint) is Literal:
        return hint
    if hint not in (float, int):
        raise ConfigError(
            f"{where}, parameter '{key}': must be float, int, bool or Literal, a number's limits "
            f"as Annotated[float, Range(0, 1)]; got {hint}."
        )
    number: Any = hint
    marks: list[Any] = []
    if limits is not None:
        low: dict[str, Any] = {"ge" if limits.low_included else "gt": limits.low}
        high: dict[str, Any] = {"le" if limits.high_included else "lt": limits.high}
        number = Annotated[hint, Field(**low, **high)]
        marks = [Usual(limits.low, limits.high, limits.low_included)]
    by_layer: Any = Layerwise
    return Annotated[(by_layer[number] if layerwise and hint is float else number, *marks, None)]


def _check_default(annotation: Any, default: Any, *, where: str) -> None:
    """Refuse a default that a file could not say: a record of it could not be read again."""
    if default is ...:
        return
    try:
        TypeAdapter(annotation).validate_python(default, strict=True)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].lower()
        raise ConfigError(
            f"{where}: the default must be an allowed value; got {default!r}: {rule}. Change it, "
            "or the Range."
        ) from None


def _hint(hint: Any) -> tuple[Any, Range | None]:
    if get_origin(hint) is not Annotated:
        return hint, None
    inner, *rest = get_args(hint)
    return inner, next((item for item in rest if isinstance(item, Range)), None)


def _described(docstring: str) -> dict[str, str]:
    """Descriptions of parameters, from a docstring's section ``Args``."""
    _, _, rest = inspect.cleandoc(docstring).partition("\nArgs:\n")
    section = re.split(r"\n\S", rest, maxsplit=1)[0]
    found = re.findall(r"^ {4}(\w+)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}
