"""What other packages add to safemerge, found by entry point and imported when it is first used.

A package declares what it adds in its ``pyproject.toml``::

    [project.entry-points."safemerge.merge_methods"]
    my_mean = "my_package:my_mean"

and needs to be installed on every node of a cluster. Finding plugins reads metadata alone.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from safemerge.errors import ConfigError

MERGE_METHODS = "safemerge.merge_methods"
ALIGNMENT_METHODS = "safemerge.alignment_methods"
SAMPLERS = "safemerge.samplers"
METRICS = "safemerge.metrics"
JUDGES = "safemerge.judges"
GROUPS = (MERGE_METHODS, ALIGNMENT_METHODS, SAMPLERS, METRICS, JUDGES)
"""Groups of entry points: one for each kind of thing that can be added."""

_Added = TypeVar("_Added")

_registered: dict[tuple[str, str], Any] = {}


class Plugin(NamedTuple):
    """One thing that a package adds."""

    group: str
    """One of `GROUPS`."""
    name: str
    """What files call it."""
    value: str
    """Where it is defined: ``package.module:name``."""
    stamp: str
    """Distribution and version, e.g. ``my-package 1.2``; recorded in runs and in digests."""

    @property
    def kind(self) -> str:
        """What it is, in words, e.g. ``merge method``."""
        return self.group.rpartition(".")[2].removesuffix("s").replace("_", " ")


def register(group: str, name: str, added: _Added) -> _Added:
    """Add something of this process alone, such as what a notebook defines.

    Processes on other nodes find only what is installed there.

    Args:
        group: One of `GROUPS`.
        name: What files call it; what was registered under that name is replaced.
        added: What `load` returns for it.

    Returns:
        What was added, so that it can end a decorator.
    """
    _registered[group, name] = added
    return added


def installed(group: str, *, builtin: Collection[str] = ()) -> Mapping[str, Plugin]:
    """Return a group's plugins by name, without importing any of them.

    Args:
        group: One of `GROUPS`.
        builtin: Names that are safemerge's own.

    Raises:
        ConfigError: If two packages add something of one name, or a package takes a name of
            safemerge's own.
    """
    found: dict[str, Plugin] = {}
    for plugin in (*_entry_points(group), *_of_this_process(group)):
        taken_by = "safemerge" if plugin.name in builtin else None
        other = found.get(plugin.name)
        if other is not None and other.value != plugin.value:
            taken_by = other.stamp
        if taken_by is not None:
            raise ConfigError(
                f"{plugin.kind} '{plugin.name}': names must be unique; got it from {taken_by} and "
                f"from {plugin.stamp} ({plugin.value}). Uninstall one of the two, or rename it."
            )
        found.setdefault(plugin.name, plugin)
    return found


def load(group: str, name: str, *, builtin: Collection[str] = ()) -> Any:
    """Import a plugin.

    Args:
        group: One of `GROUPS`.
        name: What files call it.
        builtin: Names that are safemerge's own.

    Returns:
        What its entry point names, or what was registered.

    Raises:
        ConfigError: If there is none, or it cannot be imported.
    """
    plugin = find(group, name, builtin=builtin)
    if (group, name) in _registered:
        return _registered[group, name]
    return load_path(plugin.value, where=f"{plugin.kind} '{name}' of {plugin.stamp}")


def find(group: str, name: str, *, builtin: Collection[str] = ()) -> Plugin:
    """Return a plugin by name, not imported.

    Raises:
        ConfigError: If there is none.
    """
    known = installed(group, builtin=builtin)
    if name not in known:
        kind = Plugin(group, name, "", "").kind
        raise ConfigError(
            f"{kind} '{name}': must be safemerge's own or of an installed package; got none of "
            f"that name{_listed(known)}. Install the package that has it, on every node."
        )
    return known[name]


def load_path(path: str, *, where: str) -> Any:
    """Import what ``package.module:name`` names.

    Args:
        path: Where it is defined.
        where: Place named first in messages.

    Raises:
        ConfigError: If the path is none, or it cannot be imported.
    """
    module, colon, name = path.partition(":")
    if not (colon and module and name):
        raise ConfigError(
            f"{where}: must be an import path of the form package.module:name; got {path!r}."
        )
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"{where}: must be importable; got {reason!r} for {path}. Check that it and what it "
            "needs are installed in this environment, on every node."
        ) from error
    return found


def path_stamp(path: str) -> str:
    """Return distribution and version of the package that an import path leads into."""
    top = path.partition(":")[0].partition(".")[0]
    try:
        return _stamp(importlib.metadata.distribution(top))
    except importlib.metadata.PackageNotFoundError:
        names = _distributions_by_module().get(top, ())
    return _stamp(importlib.metadata.distribution(names[0])) if names else f"{top} (no package)"


def checked_stamp(current: str, recorded: str | None, *, where: str) -> str:
    """Return the stamp to record: of a file that has one already, the same.

    Args:
        current: Stamp of what is installed here.
        recorded: Stamp in a file that safemerge wrote, in a run or for another node.
        where: Place named first in messages.

    Raises:
        ConfigError: If another version is installed here than the file was written with.
    """
    if recorded not in (None, current):
        raise ConfigError(
            f"{where}: must be the version that the file was written with, {recorded}; got "
            f"{current}. Install that version on every node, or delete this key to use this one."
        )
    return current


@lru_cache(maxsize=len(GROUPS))
def _entry_points(group: str) -> tuple[Plugin, ...]:
    return tuple(
        Plugin(
            group,
            point.name,
            point.value,
            "an unknown package" if point.dist is None else _stamp(point.dist),
        )
        for point in importlib.metadata.entry_points(group=group)
    )


def _of_this_process(group: str) -> Iterable[Plugin]:
    for (of_group, name), added in _registered.items():
        function = getattr(added, "function", added)
        module = getattr(function, "__module__", None) or type(added).__module__
        value = f"{module}:{getattr(function, '__qualname__', name)}"
        if of_group == group:
            yield Plugin(group, name, value, f"{module} (this process)")


@lru_cache(maxsize=1)
def _distributions_by_module() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


def _stamp(distribution: importlib.metadata.Distribution) -> str:
    return f"{distribution.name} {distribution.version}"


def _listed(known: Collection[str]) -> str:
    return f"; packages add {', '.join(sorted(known))}" if known else ""
