"""The models that a mergekit file merges, slot by slot: whole ones, or stacks of layers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

from safemerge.config.mergekit_file import MergekitFile, Slice, Source
from safemerge.config.mergekit_model import MergekitModel
from safemerge.config.mergekit_setting import Level

Layers = tuple[tuple[MergekitModel, int, int], ...]
"""Models one above the other, each with its first layer and the one to stop before."""


class Slot(NamedTuple):
    """What one place among the merged models holds, from slice to slice."""

    sources: tuple[Source, ...]
    """One for each slice."""

    @property
    def model(self) -> MergekitModel | Layers:
        """The one model whose layers stand in their own order, or what is stacked."""
        first = self.sources[0].model
        layers = [item.layers for item in self.sources]
        in_order = all(
            later is not None and earlier is not None and earlier[1] == later[0]
            for earlier, later in pairwise(layers)
        )
        whole = in_order and (layers[0] is None or layers[0][0] == 0)
        if whole and all(item.model == first for item in self.sources):
            return first
        return tuple((item.model, *(item.layers or (0, 0))) for item in self.sources)


class Arrangement(NamedTuple):
    """The slots of a file."""

    slices: tuple[Slice, ...]
    slots: tuple[Slot, ...]
    """The base's first, where the file has one among its models."""
    has_base: bool
    """Whether the first slot is the base model's."""

    @property
    def num_layers(self) -> int | None:
        """Layers of the result; None where the file does not say."""
        layers = [item.layers for item in self.slots[0].sources]
        return sum(stop - start for start, stop in filter(None, layers)) or None


def arrange(file: MergekitFile, *, needs_base: bool) -> Arrangement | None:
    """Sort the sources of every slice into slots: the base first, others as they are listed.

    Args:
        file: The file; collects what is wrong.
        needs_base: Whether the method measures from the base, which then is a source of each
            slice, listed or not.

    Returns:
        The slots; None if they do not fit together.
    """
    rows: list[list[Source]] = []
    num_problems = len(file.problems)
    listed_models = len(file.slices) == 1 and file.slices[0].sources[0].layers is None
    for item in file.slices:
        sources = list(item.sources)
        # NOTE: sorted is stable.
        row = sorted(sources, key=lambda source: source.model != item.base)
        has_base = item.base is not None and row[0].model == item.base
        if item.base is not None and not has_base and (needs_base or listed_models):
            row.insert(0, Source(item.base, Level("base_model", {}), row[0].layers))
        rows.append(row)
    if len({len(row) for row in rows}) > 1:
        counts = [len(row) for row in rows]
        rule = "every slice must merge as many models as the first"
        file.problem("slices", rule, counts, "Change sources in")
    if len(file.problems) > num_problems or not rows:
        return None
    slots = tuple(Slot(sources) for sources in zip(*rows, strict=True))
    has_base = all(
        item.base == source.model
        for item, source in zip(file.slices, slots[0].sources, strict=True)
    )
    return Arrangement(file.slices, slots, has_base)


def reference(model: MergekitModel | Layers, name: str, base: object) -> dict[str, Any]:
    """Return a model as a recipe refers to it.

    Args:
        model: A model, or a stack.
        name: Its name in the recipe.
        base: The recipe's base: an adapter on it needs no word of it.
    """
    if not isinstance(model, MergekitModel):
        parts = [
            {"model": reference(part, _stem(part), None), "layers": f"{start}-{stop - 1}"}
            for part, start, stop in model
        ]
        return {"name": name, "stack": parts}
    ref: dict[str, Any] = {"name": name, **model.source()}
    if model.under is not None and model.under != base:
        ref["on"] = reference(model.under, _stem(model.under), None)
    return ref


def model_names(models: Iterable[MergekitModel | Layers]) -> dict[MergekitModel | Layers, str]:
    """Name models by the last part of their path, made unique and fit for dotted paths."""
    names: dict[MergekitModel | Layers, str] = {}
    for model in dict.fromkeys(models):
        stem = _stem(model) if isinstance(model, MergekitModel) else f"{_stem(model[0][0])}-stack"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}-{number}", number + 1
        names[model] = name
    return names


def _stem(model: MergekitModel) -> str:
    last = re.sub(r"[^A-Za-z0-9_-]+", "-", model.path.rstrip("/").rsplit("/", 1)[-1])
    return (last.strip("-_") or "model")[:56]
