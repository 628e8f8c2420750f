"""Reading a study and making its checkpoints exist: what several commands begin with."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from safemerge.commands.console import Console
from safemerge.config.document import load_document
from safemerge.config.study import EvaluatorSpec, StudySpec
from safemerge.errors import PreflightError


def load_study(path: str) -> StudySpec:
    """Read a study file, its relative references taken from its own folder."""
    return load_document(path, StudySpec).located(Path(path).resolve().parent)


def preflight(spec: StudySpec) -> None:
    """Refuse what can be seen to fail before a cluster starts.

    Args:
        spec: The study; checkpoints still to be trained are not looked at.

    Raises:
        PreflightError: If the engine is not installed.
        CheckpointError: If a checkpoint cannot be opened.
    """
    from safemerge.weights.adapter import is_adapter, open_checkpoint

    check_engine(spec)
    base = open_checkpoint(spec.base.path) if spec.base.path is not None else None
    for expert in spec.experts:
        if expert.path is not None and (base is not None or not is_adapter(expert.path)):
            open_checkpoint(expert.path, base)


def check_engine(spec: StudySpec) -> None:
    """Refuse a study whose engine is not installed, without the seconds of importing it.

    Where ``RAY_ADDRESS`` names a cluster nothing is said: its machines have their own packages.

    Raises:
        PreflightError: If it is not installed.
    """
    check_installed(spec.evaluator)


def check_installed(evaluator: EvaluatorSpec) -> None:
    """Refuse an evaluator whose engine is not installed; see `check_engine`."""
    if evaluator.engine != "vllm" or os.environ.get("RAY_ADDRESS"):
        return
    if find_spec("vllm") is None:
        raise PreflightError(
            "evaluator.engine: vllm must be installed; got no such package. Install "
            "safemerge[cpu] or safemerge[gpu], or set evaluator.engine: transformers."
        )


def resolve_study(spec: StudySpec, console: Console) -> StudySpec:
    """Return the study with every checkpoint on disk and fingerprinted; needs a cluster.

    Trains what is declared and not yet cached, then checks that all models agree.

    Raises:
        UserError: If the engine, a checkpoint or a training file is missing or wrong.
        TrainingError: If a stage failed.
    """
    from safemerge.distributed.ingredient import Ingredients
    from safemerge.distributed.search import check_models

    check_engine(spec)
    ingredients = Ingredients(say=console.say, on_step=console.training_step)
    resolved = spec.with_checkpoints(ingredients.resolve(spec.all_checkpoints))
    check_models(resolved)
    return resolved
