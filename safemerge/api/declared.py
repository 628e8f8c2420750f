"""Studies and recipes as Python values: read from a file, or built from keywords and dicts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import yaml

from safemerge.config.base import StrictModel, digest
from safemerge.config.document import parse_document, read_yaml
from safemerge.config.mergekit import MergekitRecipe, is_mergekit, recipe_of_mergekit
from safemerge.config.mergekit_file import locate_models
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import StudySpec
from safemerge.files import disk_errors, replace_file

StrPath = str | os.PathLike[str]
Spec = TypeVar("Spec", MergeRecipe, StudySpec)


class Declared(Generic[Spec]):
    """A declaration, checked when it is made; it never changes.

    The keys are those of the YAML file (``safemerge schema study``), as keyword arguments;
    values are plain dicts, lists, text and numbers, and paths may be `os.PathLike`.

    Args:
        folder: Relative paths among the values are taken from this folder.
        keys: See ``safemerge schema``.

    Raises:
        ConfigError: With one line for each problem: dotted path, rule, value, nearest key.
    """

    kind: ClassVar[str]
    """As in ``safemerge schema KIND``."""
    _model: ClassVar[type[StrictModel]]
    _spec: Spec

    def __init__(self, *, folder: StrPath = ".", **keys: Any) -> None:
        name = keys.get("name")
        where = f"{self.kind} '{name}'" if isinstance(name, str) else self.kind
        self._take(parse_document(plain(keys), self._model, where=where), Path(folder))

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a YAML file; relative paths in it are taken from its own folder.

        Raises:
            ConfigError: If it cannot be read, or breaks a rule: one line for each problem.
        """
        document = read_yaml(Path(path))
        found = cls.__new__(cls)
        found._take(parse_document(document, cls._model, where=str(path)), _folder_of(path))
        return found

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """Return a checked specification as such a value."""
        found = cls.__new__(cls)
        found._spec = spec
        return found

    @property
    def spec(self) -> Spec:
        """The checked specification, paths absolute; its attributes are the file's keys."""
        return self._spec

    def replace(self, **keys: Any) -> Self:
        """Return a copy with other values for some keys, checked again."""
        return type(self)(**{**self.to_dict(), **keys})

    def to_dict(self) -> dict[str, Any]:
        """Return every key with its value, defaults included, as plain JSON-ready values."""
        document: dict[str, Any] = self._spec.resolved()
        return document

    def save(self, path: StrPath) -> Path:
        """Write it as a YAML file that `load` and the command line read.

        Raises:
            PreflightError: If the file cannot be written.
        """
        return save_yaml(self.to_dict(), path)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._spec == other._spec

    def __hash__(self) -> int:
        return hash((self.kind, digest(self.to_dict())))

    def _take(self, spec: Any, folder: Path) -> None:
        self._spec = spec.located(folder.resolve())


class Study(Declared[StudySpec]):
    """A search for merges: models, search spaces, suites, objectives, budget.

    Example:
        >>> Study(
        ...     name="mine",
        ...     base={"name": "base", "path": "models/base"},
        ...     experts=[{"name": "math", "path": "models/math"}],
        ...     spaces=[
        ...         {
        ...             "name": "ta",
        ...             "method": {"name": "task_arithmetic", "weights": {"math": 0.5}},
        ...             "vary": {"method.weights.math": {"low": 0.0, "high": 1.0}},
        ...         }
        ...     ],
        ...     suites=[{"use": "gsm8k"}],
        ...     objectives=[
        ...         {"metric": "gsm8k.accuracy", "direction": "maximize", "reference": 0.0}
        ...     ],
        ...     num_trials=20,
        ... )
        Study('mine', num_trials=20)
    """

    kind = "study"
    _model = StudySpec

    @property
    def name(self) -> str:
        """Name of the study, and of its run's folder."""
        return self._spec.name

    def __repr__(self) -> str:
        return f"Study({self.name!r}, num_trials={self._spec.num_trials})"


class Recipe(Declared[MergeRecipe]):
    """How one merge is made: base, experts, method, coefficients."""

    kind = "recipe"
    _model = MergeRecipe
    source: Path | None = None
    """The file that it was read from, if there is one."""
    notes: tuple[str, ...] = ()
    """What of a mergekit file is read in another way, or has no effect."""
    mergekit: MergekitRecipe | None = None
    """What the recipe is translated from, if that is a mergekit file."""

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Read a recipe, or a mergekit file, which is translated; see `notes`.

        Raises:
            ConfigError: If it cannot be read, or breaks a rule: one line for each problem.
        """
        path = Path(path)
        document = read_yaml(path)
        translated = (
            recipe_of_mergekit(document, where=str(path)) if is_mergekit(document) else None
        )
        found = cls.__new__(cls)
        if translated is not None:
            document = translated.document
            moved = locate_models(document, path.absolute(), Path.cwd())
            found.mergekit, found.notes = translated, (*translated.notes, *moved)
        found._take(parse_document(document, MergeRecipe, where=str(path)), _folder_of(path))
        found.source = path
        return found

    @property
    def digest(self) -> str:
        """The candidate's digest, of all that its weights depend on."""
        return self._spec.digest

    def __repr__(self) -> str:
        return f"Recipe({self._spec.method.name!r}, digest={self.digest!r})"


def load_study(path: StrPath) -> Study:
    """Read a study file.

    Args:
        path: YAML; relative paths in it are taken from its own folder.

    Raises:
        ConfigError: If it cannot be read, or breaks a rule: one line for each problem, with the
            file, the dotted path, the value and the nearest valid key.
    """
    return Study.load(path)


def as_study(study: Study | StrPath) -> Study:
    """Return a study as it is, or read its file."""
    return study if isinstance(study, Study) else load_study(study)


def as_recipe(recipe: Recipe | StrPath) -> Recipe:
    """Return a recipe as it is, or read its file."""
    return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)


Located = TypeVar("Located", bound="StrictModel")


def declared(source: StrPath | Mapping[str, Any], model: type[Located], *, kind: str) -> Located:
    """Return the specification that a file or a mapping declares, its paths absolute.

    Args:
        source: A YAML file, whose relative paths are taken from its own folder; or its keys as a
            mapping, whose relative paths are taken from the current folder.
        model: The schema.
        kind: What messages about a mapping start with.

    Raises:
        ConfigError: See `Declared`.
    """
    if isinstance(source, Mapping):
        document, folder, where = plain(source), Path(), kind
    else:
        document = read_yaml(Path(source))
        folder, where = _folder_of(source), str(source)
    spec: Any = parse_document(document, model, where=where)
    located: Located = spec.located(folder.resolve())
    return located


def _folder_of(file: StrPath) -> Path:
    return Path(file).resolve().parent


def plain(value: object) -> Any:
    """Return a value as YAML would give it: dicts, lists, text and plain numbers.

    What YAML has no form for stays as it is, for the check of the document to name.
    """
    if isinstance(value, Declared):
        return value.to_dict()
    if isinstance(value, StrictModel):
        return value.resolved()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | float | str) or value is None:
        # NOTE: numpy's float64 is a float, and YAML's writer knows only Python's own.
        return float(value) if isinstance(value, float) else value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def save_yaml(document: Mapping[str, Any], path: StrPath) -> Path:
    """Write a document as YAML, whole.

    Raises:
        PreflightError: If it cannot be written.
    """
    path = Path(path)
    text = yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True)
    with disk_errors(path.parent):
        replace_file(path, text)
    return path
