"""A recipe that a search starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.document import load_document
from safemerge.config.recipe import MergeRecipe

RECIPE_STEM = "recipe"
"""What `safemerge optimize` calls its recipe; the folder then tells which one it is."""


class WarmStart(StrictModel):
    """A recipe over a study's models that its search starts from."""

    name: str
    """Unique among the study's warm starts."""
    recipe: MergeRecipe
    num_layers: int = Field(ge=1)
    """Decoder layers of the base, over which coefficients are averaged."""

    @property
    def label(self) -> str:
        """Name as a reference point; no checkpoint can have it, since it holds a space."""
        return f"start {self.name}"


def warm_start_names(files: Sequence[str]) -> list[str]:
    """Return a name for each recipe file.

    Args:
        files: Paths of the files.

    Returns:
        The file's stem, or its folder's name for ``recipe.yaml``; a number is added to names
        that come again.
    """
    names: list[str] = []
    for file in map(Path, files):
        stem = file.parent.name if file.stem == RECIPE_STEM and file.parent.name else file.stem
        again = sum(name == stem or name.startswith(f"{stem} (") for name in names)
        names.append(f"{stem} ({again + 1})" if again else stem)
    return names


def read_recipe(file: str) -> MergeRecipe:
    """Read a recipe file, its relative paths taken from its own folder.

    Raises:
        ConfigError: If the file is missing or wrong.
    """
    return load_document(file, MergeRecipe).located(Path(file).resolve().parent)
