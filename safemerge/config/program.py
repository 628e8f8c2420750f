"""Programs on top of the core: what each adds to command line, files, tables and reports.

The core does not know its programs. The top of the house registers them, and the command line,
`safemerge schema`, `safemerge methods` and `safemerge report` go through those registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import argparse

    from safemerge.config.method_row import MethodRow


class MethodTable(NamedTuple):
    """Methods of one kind."""

    kind: str
    """In JSON, e.g. ``optimizer``."""
    label: str
    """In words, behind a method's title."""
    heading: str
    rows: Mapping[str, MethodRow]
    """By name."""


@dataclass(frozen=True)
class Program:
    """One program. What it names is imported when it is needed: ``package.module:name``."""

    name: str
    """Its command, which is its kind of file too."""
    help: str
    """One line for ``safemerge --help``."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the command's arguments to its parser."""
    run: str
    """Runs the command: a function of the parsed options."""
    spec: str
    """Model of its files."""
    marks: frozenset[str] = frozenset()
    """Keys that no other kind of file has."""
    method_table: str | None = None
    """The `MethodTable` that it adds to `safemerge methods`."""
    report: str | None = None
    """Draws the report of a run folder and returns its path; None if the run is not its own."""


PROGRAMS: dict[str, Program] = {}
"""Registered programs by name."""


def register(program: Program) -> None:
    """Add a program; one of the same name is replaced."""
    PROGRAMS[program.name] = program


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where run folders lie."""
    parser.add_argument(
        "--results",
        default="results",
        metavar="DIR",
        help="folder for run folders (default: results)",
    )


def load_attribute(path: str) -> Any:
    """Import what ``package.module:name`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
