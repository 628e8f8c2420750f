"""``safemerge export``: a point of a run's front as a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.api.export import export
from safemerge.commands.console import Console

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Pick, merge, write, with a model card that says what was measured."""
    export(
        options.run,
        options.pick,
        options.out,
        as_stored=options.as_stored,
        progress=Console().say,
    )
