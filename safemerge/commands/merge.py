"""``safemerge merge``: a recipe's checkpoint on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safemerge.api.merge import merge
from safemerge.commands.console import Console

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Merge and write."""
    merge(
        options.recipe,
        options.out,
        mergekit=options.mergekit,
        adapter=options.adapter,
        rank=options.rank,
        progress=Console().say,
    )
