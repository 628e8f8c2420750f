"""``safemerge validate``: every problem of every file at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.config.document import parse_document, read_yaml
from safemerge.config.mergekit import is_mergekit, recipe_of_mergekit
from safemerge.config.recipe import MergeRecipe
from safemerge.config.schema import detect_kind, model_of
from safemerge.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def run(options: argparse.Namespace) -> None:
    """Check each file against the schema its keys call for."""
    problems = []
    for name in options.files:
        try:
            document = read_yaml(Path(name))
            if is_mergekit(document):
                print(f"{name}: ok ({_of_mergekit(document, name)})")
                continue
            kind = detect_kind(document, where=name)
            parse_document(document, model_of(kind), where=name)
        except ConfigError as error:
            problems.append(str(error))
        else:
            print(f"{name}: ok ({kind})")
    if problems:
        raise ConfigError("\n".join(problems))


def _of_mergekit(document: dict[str, Any], where: str) -> str:
    """Check a mergekit file, print what it holds to no effect, and say what it becomes."""
    found = recipe_of_mergekit(document, where=where)
    recipe = parse_document(found.document, MergeRecipe, where=where)
    for note in found.notes:
        print(f"{where}: {note}")
    names = ", ".join(ref.name for ref in recipe.experts) or recipe.base.name
    return f"mergekit file: a recipe with {recipe.method.name} of {names}, base {recipe.base.name}"
