"""``safemerge serve``: keep a study's evaluator up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from safemerge.api.declared import load_study
from safemerge.api.prepare import preflight, resolve_study
from safemerge.commands.console import Console

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Start the evaluator and wait for Ctrl-C."""
    console = Console()
    spec = load_study(options.study).spec.model_copy(update={"rung": None})
    suites = preflight(spec, console).suites

    from safemerge.distributed.cluster import ray_cluster
    from safemerge.distributed.evaluator import Evaluator
    from safemerge.distributed.request import DEPLOYMENT

    app = f"safemerge-{spec.name}"
    with ray_cluster():
        resolved = resolve_study(spec, suites, console)
        console.say("starting the evaluator")
        with Evaluator(resolved, app=app):
            console.say(
                f"up: Serve application '{app}', deployment '{DEPLOYMENT}'. Other processes of "
                "this Ray cluster reach it with serve.get_deployment_handle. Ctrl-C ends it."
            )
            while True:
                time.sleep(3600)
