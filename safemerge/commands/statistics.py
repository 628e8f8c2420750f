"""``safemerge statistics``: gather what data-aware merges read of models, ahead of a merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safemerge.commands.console import Console
from safemerge.config.document import parse_document, read_yaml
from safemerge.config.recipe import MergeRecipe
from safemerge.config.schema import detect_kind
from safemerge.config.study import StudySpec
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Gather every model's statistics; they stay in the cache, where recipes find them."""
    path = Path(options.file)
    document = read_yaml(path)
    kind = detect_kind(document, where=str(path))
    if kind not in ("recipe", "study"):
        raise ConfigError(
            f"{path}: must be a recipe or a study, for its models are measured; got {kind}. Name "
            f"the file in a model of a recipe: 'statistics: {{gather: {path.name}}}'."
        )
    spec: MergeRecipe | StudySpec
    if kind == "recipe":
        spec = parse_document(document, MergeRecipe, where=str(path))
    else:
        spec = parse_document(document, StudySpec, where=str(path))
    spec = spec.located(path.resolve().parent)
    if all(ref.statistics is None for ref in spec.checkpoints):
        raise ConfigError(
            f"{path}: some model must name statistics; got none. Add "
            f"'statistics: {{gather: FILE.yaml}}' to a model."
        )

    from safemerge.distributed.ingredient import Ingredients

    console = Console()
    ingredients = Ingredients(say=console.say, on_step=console.training_step)
    resolved = ingredients.resolve(spec.checkpoints)
    for ref in resolved.values():
        if ref.statistics is not None:
            console.say(f"statistics of '{ref.name}': {ref.statistics.path}")
