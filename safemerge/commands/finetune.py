"""``safemerge finetune``: user fine-tuning on Ray Train."""

from __future__ import annotations

import argparse

from safemerge.commands.stage import run_stage


def run(options: argparse.Namespace) -> None:
    """Train the stage."""
    run_stage(options, "finetune")
