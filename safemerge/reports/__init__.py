"""The report of a run: front, comparisons, page, figures, tables and model card.

Names are loaded on first use, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safemerge.front import (
        assemble_front,
        front_trials,
        hypervolume_steps,
        knee_number,
        reference_trials,
    )
    from safemerge.reports.card import model_card
    from safemerge.reports.comparison import (
        Pair,
        PairedDifference,
        indistinguishable_pairs,
        paired_difference,
        point_differences,
    )
    from safemerge.reports.figure import write_figures
    from safemerge.reports.html import render_html
    from safemerge.reports.render import write_report
    from safemerge.reports.run import Point, Run, load_run
    from safemerge.reports.table import front_markdown, front_table

__all__ = [
    "Pair",
    "PairedDifference",
    "Point",
    "Run",
    "assemble_front",
    "front_markdown",
    "front_table",
    "front_trials",
    "hypervolume_steps",
    "indistinguishable_pairs",
    "knee_number",
    "load_run",
    "model_card",
    "paired_difference",
    "point_differences",
    "reference_trials",
    "render_html",
    "write_figures",
    "write_report",
]

_MODULES = {
    "card": ("model_card",),
    "comparison": (
        "Pair",
        "PairedDifference",
        "indistinguishable_pairs",
        "paired_difference",
        "point_differences",
    ),
    "figure": ("write_figures",),
    ".front": (  # safemerge.front, beside this package
        "assemble_front",
        "front_trials",
        "hypervolume_steps",
        "knee_number",
        "reference_trials",
    ),
    "html": ("render_html",),
    "render": ("write_report",),
    "run": ("Point", "Run", "load_run"),
    "table": ("front_markdown", "front_table"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
