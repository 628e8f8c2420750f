"""Settings of a mergekit file as coefficients by layer group: filters, slices and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from safemerge.config.coefficient import DEFAULT_GROUP
from safemerge.config.mergekit_setting import Entry, Plain, at_start, in_slice


class Setting(NamedTuple):
    """A parameter's entries in every slice, to be turned into a coefficient."""

    slices: tuple[tuple[Entry, ...], ...]


class _Region(NamedTuple):
    """Tensors for which the entries of one slice hold."""

    name: str
    rule: dict[str, str]
    slice_at: int


class Groups:
    """Layer groups that tell apart whatever some settings tell apart.

    Args:
        settings: Every setting of the file.
        lengths: Number of layers of each slice; of a file with models alone, any one number.
    """

    def __init__(self, settings: Sequence[Setting], lengths: Sequence[int]) -> None:
        self._lengths = lengths
        every = [entry for setting in settings for item in setting.slices for entry in item]
        self._filters = _in_order(entry.filter for entry in every if entry.filter)
        alike = all(len(set(map(repr, setting.slices))) == 1 for setting in settings)
        gradients = any(isinstance(entry.value, list) for entry in every)
        self.has_gradients = gradients
        self.apart: dict[tuple[str, str], None] = {}
        """Pairs of filters that must not match one tensor for the coefficients to hold."""
        self._regions = [] if alike and (len(lengths) == 1 or not gradients) else self._all()

    def layer_groups(self) -> list[dict[str, Any]]:
        """Return the groups as a recipe declares them."""
        if not self._regions:
            return [
                {"name": f"filter-{at + 1}", "tensors": [_pattern(text)], "optional": True}
                for at, text in enumerate(self._filters)
            ]
        groups = []
        for region in self._regions:
            for at, text in enumerate(self._filters):
                name = f"{region.name}-filter-{at + 1}"
                rule = {**region.rule, "tensors": [_pattern(text)]}
                groups.append({"name": name, **rule, "optional": True})
            groups.append({"name": region.name, **region.rule, "optional": True})
        return groups

    def coefficient(self, setting: Setting) -> Any:
        """Return a setting as a coefficient: a number, anchors, or either by layer group."""
        if not self._regions:
            entries = setting.slices[0]
            if len(entries) == 1:
                return entries[0].value
            by_group: dict[str, Any] = {
                f"filter-{at + 1}": self._of_filter(entries, text)
                for at, text in enumerate(self._filters)
            }
            return {**by_group, DEFAULT_GROUP: entries[-1].value}
        found: dict[str, Any] = {}
        for region in self._regions:
            entries = setting.slices[region.slice_at]
            for at, text in enumerate(self._filters):
                value = self._of_filter(entries, text)
                found[f"{region.name}-filter-{at + 1}"] = self._within(region, value)
            found[region.name] = self._within(region, entries[-1].value)
        values = list(found.values())
        if all(value == values[0] for value in values):
            return values[0]
        return {**found, DEFAULT_GROUP: found["before"]}

    def _all(self) -> list[_Region]:
        regions, first = [_Region("before", {"outside": "before"}, 0)], 0
        for at, length in enumerate(self._lengths):
            rule = {"layers": f"{first}-{first + length - 1}"}
            regions.append(_Region(f"slice-{at + 1}", rule, at))
            first += length
        return [*regions, _Region("after", {"outside": "after"}, len(self._lengths) - 1)]

    def _within(self, region: _Region, value: Plain) -> Plain:
        if "outside" in region.rule:
            return at_start(value)
        first, last = map(int, region.rule["layers"].split("-"))
        return in_slice(value, first=first, last=last, num_layers=sum(self._lengths))

    def _of_filter(self, entries: Sequence[Entry], text: str) -> Plain:
        """Return what holds for the tensors that match a filter and none before it."""
        for entry in entries:
            if entry.filter is None or entry.filter in text:
                return entry.value
            if self._filters.index(entry.filter) > self._filters.index(text):
                self.apart[text, entry.filter] = None
        raise AssertionError("the last entry is for every tensor")


def _in_order(filters: Iterable[str]) -> list[str]:
    """Return filters as they come, each once, but before those that hold wherever it does."""
    found: list[str] = []
    for text in dict.fromkeys(filters):
        wider = (at for at, other in enumerate(found) if other in text)
        found.insert(next(wider, len(found)), text)
    return found


def _pattern(text: str) -> str:
    """Return the glob for names that hold a text."""
    escaped = "".join(f"[{sign}]" if sign in "*?[" else sign for sign in text)
    return f"*{escaped}*"
