"""Reading a study and making its checkpoints exist: what several commands begin with."""

from __future__ import annotations

from pathlib import Path

from safemerge.commands.console import Console
from safemerge.config.document import load_document
from safemerge.config.study import StudySpec


def load_study(path: str) -> StudySpec:
    """Read a study file, its relative references taken from its own folder."""
    return load_document(path, StudySpec).located(Path(path).resolve().parent)


def resolve_study(spec: StudySpec, console: Console) -> StudySpec:
    """Return the study with every checkpoint on disk and fingerprinted; needs a cluster.

    Trains what is declared and not yet cached, then checks that all models agree.
    """
    from safemerge.distributed.ingredient import Ingredients
    from safemerge.distributed.search import check_models

    ingredients = Ingredients(say=console.say, on_step=console.training_step)
    resolved = spec.with_checkpoints(ingredients.resolve(spec.checkpoints))
    check_models(resolved)
    return resolved
