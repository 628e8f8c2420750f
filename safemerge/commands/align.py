"""``safemerge align``: an alignment stage on Ray Train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.commands.stage import run_stage

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Train the stage."""
    run_stage(options, "align")
