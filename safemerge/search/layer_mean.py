"""The mean of a layer-wise coefficient over some layers: how a coarser space sees it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from safemerge.config.coefficient import DEFAULT_GROUP, LayerGroup, ModuleKind, Number


class Span(NamedTuple):
    """The part of a model that a coarser coefficient holds for."""

    layers: tuple[int, ...]
    """Decoder layers, 0-indexed."""
    kind: ModuleKind | None = None
    """Kind of module; None for all that are inside the layers."""


def layer_mean(
    number: Number, groups: Sequence[LayerGroup], span: Span, *, num_layers: int
) -> float:
    """Return the mean of a coefficient over a span.

    Every layer counts once, whatever its number of weights. Embeddings, output head and what
    else is outside the layers do not count, unless the span is theirs: a coefficient that
    changes nothing there, as with LoRA experts, is written as 0 and would pull the mean down.
    Within a layer, groups that share it (by kind or by pattern) count alike.

    Args:
        number: The coefficient.
        groups: The layer groups that it goes by.
        span: What to average over.
        num_layers: Decoder layers of the model.

    Returns:
        The mean; over all numbers of the coefficient if nothing of it is in the span.
    """
    if span.kind == "embeddings":
        return _embeddings(number, groups)
    means = []
    for layer in span.layers:
        depth = layer / (num_layers - 1) if num_layers > 1 else 0.0
        values = [_at(item, depth) for item in _in_layer(number, groups, layer, span.kind)]
        if values:
            means.append(sum(values) / len(values))
    if not means:
        items = list(number.values()) if isinstance(number, dict) else [number]
        means = [_at(item, 0.5) for item in items]
    return sum(means) / len(means)


def group_span(name: str, groups: Sequence[LayerGroup], *, num_layers: int) -> Span:
    """Return the span of a layer group; of ``default``, the layers that no other one fills."""
    every = tuple(range(num_layers))
    for group in groups:
        if group.name == name:
            return Span(tuple(layer for layer in every if _holds(group, layer)), group.kind)
    filled = [group for group in groups if group.kind is None and group.tensors is None]
    rest = tuple(layer for layer in every if not any(_holds(item, layer) for item in filled))
    return Span(rest or every)


def depth_span(place: int, count: int, *, num_layers: int) -> Span:
    """Return the layer at which an anchor stands: the `place`-th of `count`, from 0."""
    return Span((round(place / (count - 1) * (num_layers - 1)),))


def _holds(group: LayerGroup, layer: int) -> bool:
    if group.layers is None:
        return True
    first, last = group.layer_range
    return first <= layer <= last


def _in_layer(
    number: Number, groups: Sequence[LayerGroup], layer: int, kind: ModuleKind | None
) -> Iterator[float | list[float]]:
    """Yield the coefficient's entries for a layer, until one holds for all of it."""
    if not isinstance(number, dict):
        yield number
        return
    for group in groups:
        other_kind = kind is not None and group.kind not in (None, kind)
        if group.kind == "embeddings" or other_kind or not _holds(group, layer):
            continue
        if group.name in number or DEFAULT_GROUP in number:
            yield number.get(group.name, number.get(DEFAULT_GROUP, 0.0))
        if group.tensors is None and group.kind in (None, kind):
            return
    if DEFAULT_GROUP in number:
        yield number[DEFAULT_GROUP]


def _embeddings(number: Number, groups: Sequence[LayerGroup]) -> float:
    if not isinstance(number, dict):
        return _at(number, 0.0)
    for group in groups:
        if group.kind == "embeddings" and group.layers is None and group.name in number:
            return _at(number[group.name], 0.0)
    values = list(number.values())
    return _at(number.get(DEFAULT_GROUP, values[0]), 0.0)


def _at(value: float | list[float], depth: float) -> float:
    if not isinstance(value, list):
        return value
    place = depth * (len(value) - 1)
    before = min(int(place), len(value) - 2)
    share = place - before
    return value[before] * (1.0 - share) + value[before + 1] * share
