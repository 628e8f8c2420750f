"""``safemerge demo``: the whole line on a real small model."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.commands.folder import run_folder
from safemerge.commands.search import search
from safemerge.commands.study import load_study
from safemerge.config.shipped import shipped_file

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Fetch, train, search and report in any folder; an interrupted demo resumes."""
    console = Console()
    spec = load_study(str(shipped_file("demo.yaml")))
    if find_spec("vllm") is None and not os.environ.get("RAY_ADDRESS"):
        console.plain("vLLM is not installed: the demo runs on the transformers engine.")
        evaluator = spec.evaluator.model_copy(update={"engine": "transformers"})
        spec = spec.model_copy(update={"evaluator": evaluator})
    folder = run_folder(options.results, spec.name)
    if folder.exists() and (options.fresh or (folder / "front.json").exists()):
        shutil.rmtree(folder)
    console.plain(
        "safemerge demo: base and prompts from pip packages, an aligned model and two experts by\n"
        "Ray Train, a search over their merges on two live engines, a Pareto report.\n"
        "Ingredients are cached: a second run trains nothing."
    )
    search(spec, folder, console, again="safemerge demo")
