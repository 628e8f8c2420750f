"""``safemerge demo``: the whole line on a real small model."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

from safemerge.api.declared import Study, load_study
from safemerge.api.search import search
from safemerge.commands.console import Console
from safemerge.commands.search import show
from safemerge.config.shipped import shipped_file
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Fetch, train, search and report in any folder; an interrupted demo resumes."""
    console = Console()
    study = load_study(shipped_file("demo.yaml"))
    if find_spec("vllm") is None and not os.environ.get("RAY_ADDRESS"):
        console.plain("vLLM is not installed: the demo runs on the transformers engine.")
        evaluator = study.spec.evaluator.model_copy(update={"engine": "transformers"})
        study = Study.of(study.spec.model_copy(update={"evaluator": evaluator}))
    store = RunStore.under(options.results, study.name)
    if store.folder.exists() and (options.fresh or store.front_path.exists()):
        with store.locked():
            shutil.rmtree(store.folder)
    console.plain(
        "safemerge demo: base and prompts from pip packages, an aligned model and two experts by\n"
        "Ray Train, a search over their merges on two live engines, a Pareto report.\n"
        "Ingredients are cached: a second run trains nothing."
    )
    found = search(
        study, results=options.results, resume=True, progress=console.say, again="safemerge demo"
    )
    show(found, console)
