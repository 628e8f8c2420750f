"""The kinds of files that safemerge takes, by name: their models, schemas and recognition."""

from __future__ import annotations

from typing import Any

from safemerge.config.alignment import AlignSpec
from safemerge.config.base import StrictModel
from safemerge.config.problems import did_you_mean
from safemerge.config.program import PROGRAMS, load_attribute
from safemerge.config.recipe import MergeRecipe
from safemerge.config.statistics import StatisticsSpec
from safemerge.config.study import StudySpec
from safemerge.config.training import FinetuneSpec
from safemerge.errors import ConfigError

_CORE: dict[str, type[StrictModel]] = {
    "study": StudySpec,
    "recipe": MergeRecipe,
    "finetune": FinetuneSpec,
    "align": AlignSpec,
    "statistics": StatisticsSpec,
}
_MARKS: dict[str, frozenset[str]] = {
    "study": frozenset({"spaces", "suites", "objectives", "num_trials"}),
    "recipe": frozenset({"method", "experts"}),
    "finetune": frozenset({"poison"}),
    "statistics": frozenset({"quantities"}),
}
"""Keys that no other kind has; any of a study's, all of a recipe's."""


def kinds() -> dict[str, type[StrictModel]]:
    """Return the model of every kind of file: the core's, then the registered programs'."""
    return _CORE | {name: load_attribute(program.spec) for name, program in PROGRAMS.items()}


def model_of(name: str) -> type[StrictModel]:
    """Return the model of a kind of file.

    Args:
        name: One of `kinds`.

    Returns:
        The strict model.

    Raises:
        ConfigError: If there is no such kind.
    """
    known = kinds()
    if name not in known:
        raise ConfigError(f"schema: no such kind of file; got {name!r}. {_advice(name)}")
    return known[name]


def json_schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of a kind of file, for editors and other tools.

    Rules between fields (unique names, known metrics, legal corners) are not in it; see
    ``safemerge validate``.

    Args:
        name: One of `kinds`.

    Returns:
        A draft 2020-12 schema that names YAML's keys.

    Raises:
        ConfigError: If there is no such kind.
    """
    return schema_of(name, model_of(name))


def schema_of(name: str, model: type[StrictModel]) -> dict[str, Any]:
    """Return the JSON schema of a model's documents, of draft 2020-12, under a name."""
    schema = model.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"safemerge {name}",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def detect_kind(document: object, *, where: str = "document") -> str:
    """Tell which kind of file a document is, by the keys that only this kind has.

    A file may say so itself with ``kind``; else a study has spaces, suites or objectives, a
    recipe has a method and experts, a fine-tuning has a poison, statistics have quantities, and a
    program's file has the marks that it is registered with.

    Args:
        document: What `read_yaml` returned.
        where: The file name that messages start with.

    Returns:
        One of `kinds`.

    Raises:
        ConfigError: If it cannot be determined, or `kind` names no kind.
    """
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise ConfigError(f"{where}: must be a mapping; got {kind}.")
    said = document.get("kind")
    if said is not None:
        if not isinstance(said, str) or said not in kinds():
            raise ConfigError(f"{where}: kind: unknown choice; got {said!r}. {_advice(str(said))}")
        return said
    keys = set(document)
    if keys & _MARKS["study"]:
        return "study"
    if keys >= _MARKS["recipe"]:
        return "recipe"
    marks = {name: program.marks for name, program in PROGRAMS.items()}
    for kind in ("finetune", "statistics", *marks):
        if keys & (_MARKS | marks)[kind]:
            return kind
    if {"data", "steps"} & keys:
        raise ConfigError(
            f"{where}: kind: required key is missing. Add 'kind: finetune' or 'kind: align'."
        )
    found = ", ".join(sorted(map(str, keys))) or "none"
    raise ConfigError(
        f"{where}: cannot tell what kind of file this is; got keys {found}. A study has spaces, "
        "suites and objectives; a recipe has experts and a method; others say their kind."
    )


def _advice(name: str) -> str:
    return did_you_mean(name, kinds())
