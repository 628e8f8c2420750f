"""``safemerge demo``: the whole line on a real small model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.api.declared import load_study
from safemerge.api.search import search
from safemerge.commands.console import Console
from safemerge.commands.search import show
from safemerge.errors import UserError
from safemerge.store import RunStore

if TYPE_CHECKING:
    import argparse

STUDY = Path("search_spaces/demo.yaml")


def run(options: argparse.Namespace) -> None:
    """Fetch, train, search and report; an interrupted demo goes on where it was."""
    console = Console()
    if not STUDY.is_file():
        raise UserError(f"demo: must run in safemerge's folder; got no {STUDY} here. cd to it.")
    study = load_study(STUDY)
    store = RunStore.under(options.results, study.name)
    if store.folder.exists() and (options.fresh or store.front_path.exists()):
        with store.locked():
            shutil.rmtree(store.folder)
    console.plain(
        "safemerge demo: base and prompts from pip packages, an aligned model and two experts by\n"
        "Ray Train, a search over their merges on two live vLLM engines, a Pareto report.\n"
        "Ingredients are cached: a second run trains nothing."
    )
    found = search(
        study, results=options.results, resume=True, progress=console.say, again="safemerge demo"
    )
    show(found, console)
