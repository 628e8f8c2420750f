"""safemerge: find merges of fine-tuned language models that are skilled and safe.

From Python as from the command line::

    import safemerge

    study = safemerge.load_study("study.yaml")
    run = safemerge.search(study, progress=print)
    safemerge.export(run, "knee", "merged")

Names are loaded on first use: importing the package takes milliseconds.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from safemerge import errors

if TYPE_CHECKING:
    from safemerge.api.attribute import attribute
    from safemerge.api.compare import compare
    from safemerge.api.declared import Recipe, Study, load_study
    from safemerge.api.evaluate import evaluate
    from safemerge.api.export import export
    from safemerge.api.merge import merge
    from safemerge.api.methods import methods
    from safemerge.api.run import Run, load_run
    from safemerge.api.search import search
    from safemerge.api.stage import align, finetune
    from safemerge.generation.command import generate
    from safemerge.optimize.command import optimize
    from safemerge.robustness.command import robustness

__version__ = "0.2.0"

__all__ = [
    "Recipe",
    "Run",
    "Study",
    "align",
    "attribute",
    "compare",
    "errors",
    "evaluate",
    "export",
    "finetune",
    "generate",
    "load_run",
    "load_study",
    "merge",
    "methods",
    "optimize",
    "robustness",
    "search",
]

_MODULES = {
    "Recipe": "api.declared",
    "Run": "api.run",
    "Study": "api.declared",
    "align": "api.stage",
    "attribute": "api.attribute",
    "compare": "api.compare",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "finetune": "api.stage",
    "generate": "generation.command",
    "load_run": "api.run",
    "load_study": "api.declared",
    "merge": "api.merge",
    "methods": "api.methods",
    "optimize": "optimize.command",
    "robustness": "robustness.command",
    "search": "api.search",
}
"""Module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.programs")  # kinds of files and methods of programs
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose public functions keep names that rooms of it have too.

    Importing the room ``safemerge.merge`` would bind that name to the room;
    ``from safemerge.merge import ...`` finds the room all the same.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
