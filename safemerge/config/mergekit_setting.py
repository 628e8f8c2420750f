"""A parameter of a mergekit file: one number, a gradient, or either by filter."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

Plain = float | list[float]
"""One number, or a gradient's."""

_CONDITION = frozenset({"filter", "value"})


class Entry(NamedTuple):
    """A value, and the part of a tensor's name that it is for."""

    filter: str | None
    """None for every tensor."""
    value: Plain


class Level(NamedTuple):
    """Parameters of one place of the file: of a model, of a slice or of the whole file."""

    place: str
    parameters: Mapping[str, Any]


class Malformed(NamedTuple):
    """What is wrong with a setting."""

    place: str
    rule: str
    got: object


def read_setting(
    key: str, levels: Iterable[Level], *, default: float | None = None
) -> tuple[Entry, ...] | Malformed:
    """Return a parameter's entries, in the order in which mergekit tries them.

    A setting whose filters all fail falls through to the next level, and from the last one to
    the method's default.

    Args:
        key: The parameter's name.
        levels: The model's own parameters first, the whole file's last.
        default: mergekit's; None where a value is needed.

    Returns:
        Entries of which the last is for every tensor, or what is wrong.
    """
    found: list[Entry] = []
    place = "parameters"
    for level in levels:
        place = level.place
        if level.parameters.get(key) is None:
            continue
        entries = _entries(f"{place}.{key}", level.parameters[key])
        if isinstance(entries, Malformed):
            return entries
        found += entries
        if found[-1].filter is None:
            return tuple(found)
    if default is None:
        if found:
            return Malformed(f"{place}.{key}", "must end with a value for the rest", None)
        return Malformed(f"{place}.{key}", "is needed", None)
    return (*found, Entry(None, default))


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def in_slice(value: Plain, *, first: int, last: int, num_layers: int) -> Plain:
    """Return a slice's gradient as anchors over all layers of the result, one for each layer.

    Args:
        value: A number, or a gradient over the slice's layers.
        first: The slice's first layer in the result.
        last: Its last.
        num_layers: Layers of the result.

    Returns:
        The number, or a value for each layer; outside the slice that of its nearest layer.
    """
    if not isinstance(value, list):
        return value
    if num_layers == 1:
        return value[-1]
    return [
        _at(
            value, (min(max(layer, first), last) - first) / (last - first) if last > first else 1.0
        )
        for layer in range(num_layers)
    ]


def at_start(value: Plain) -> float:
    """Return what mergekit reads of a gradient outside the layers: the first number."""
    return value[0] if isinstance(value, list) else value


def _at(gradient: Sequence[float], depth: float) -> float:
    place = depth * (len(gradient) - 1)
    before = min(int(place), len(gradient) - 2)
    share = place - before
    return gradient[before] * (1.0 - share) + gradient[before + 1] * share


def _entries(place: str, given: object) -> list[Entry] | Malformed:
    plain = _plain(given)
    if plain is not None:
        return [Entry(None, plain)]
    items: list[Any] = given if isinstance(given, list) else [given]
    if not items or not all(isinstance(item, dict) for item in items):
        return Malformed(place, "must be a number or a list", given)
    found: list[Entry] = []
    for item in items:
        text, number = item.get("filter"), _plain(item.get("value"))
        if number is None or not isinstance(text, str | None) or set(item) - _CONDITION:
            rule = "must have a value, and at most a filter, in each item"
            return Malformed(place, rule, item)
        found.append(Entry(None if text in (None, "", "*") else text, number))
        if found[-1].filter is None:
            break
    return found


def _plain(given: object) -> Plain | None:
    """Return a number, or the numbers of a gradient; None for anything else."""
    number = _number(given)
    if number is not None:
        return number
    if not isinstance(given, list) or not given:
        return None
    numbers = [_number(item) for item in given]
    found = [item for item in numbers if item is not None]
    if len(found) < len(given):
        return None
    return found if len(found) > 1 else found[0]


def _number(given: object) -> float | None:
    """Return a number, also of a text such as ``1e-5``, which YAML 1.1 does not take for one."""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            return None
    return float(given) if is_number(given) else None
