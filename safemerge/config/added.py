"""Unions of declarations that other packages may add to."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from safemerge import plugins
from safemerge.config.base import StrictModel
from safemerge.config.problems import ADDED, did_you_mean, problem_lines
from safemerge.errors import ConfigError


@dataclass(frozen=True, eq=False)
class WithAdded:
    """Marks a union by ``name``, to which a group of entry points adds members.

    A document with a name of safemerge's own is validated as if the mark were not there; for
    another name the package that has it is imported.
    """

    group: str
    """One of `safemerge.plugins.GROUPS`."""
    builtin: Collection[str]
    """Names of the union's own members."""
    spec_of: Callable[[str], type[StrictModel]]
    """Imports the declaration of an added member."""

    def __repr__(self) -> str:
        return f"WithAdded({self.group!r})"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the union's schema with a choice for what is added."""
        added = core_schema.with_info_plain_validator_function(
            self._validated,
            serialization=core_schema.plain_serializer_function_ser_schema(_dumped, info_arg=True),
        )
        return core_schema.tagged_union_schema(
            {"builtin": handler(source), "added": added}, discriminator=self._choice
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the union's JSON schema, what installed packages add among its members."""
        builtin = handler(schema["choices"]["builtin"])
        specs = [self.spec_of(name) for name in plugins.installed(self.group)]
        if not specs:
            return builtin
        members = [handler(spec.__pydantic_core_schema__) for spec in specs]
        return {"anyOf": [builtin, *members]}

    def _choice(self, value: Any) -> str:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        known = not isinstance(name, str) or name in self.builtin
        return "builtin" if known else "added"

    def _validated(self, value: Any, info: core_schema.ValidationInfo) -> StrictModel:
        if not isinstance(value, dict):
            return self.spec_of(value.name).model_validate(value)
        return added_member(
            value,
            info,
            group=self.group,
            key="name",
            builtin=self.builtin,
            spec_of=self.spec_of,
        )


def added_member(
    document: dict[str, Any],
    info: core_schema.ValidationInfo,
    *,
    group: str,
    key: str,
    builtin: Collection[str],
    spec_of: Callable[[str], type[StrictModel]],
) -> StrictModel:
    """Validate a document of a union's member that another package adds.

    Args:
        document: With a value under `key` that is none of `builtin`.
        info: Pydantic's.
        group: One of `safemerge.plugins.GROUPS`.
        key: The union's discriminator.
        builtin: Names of the union's own members.
        spec_of: Imports the declaration of an added member.

    Raises:
        PydanticCustomError: With a line for each problem.
    """
    name = document[key]
    if not isinstance(name, str):
        known_names = ", ".join(builtin)
        raise _problems(f"{key}: must be text; got {json.dumps(name)}. Known: {known_names}.")
    try:
        known = plugins.installed(group, builtin=builtin)
        if name not in known:
            if document.get("plugin") is not None:
                raise _problems(
                    f"{key}: must be of a package that is installed here; got "
                    f"{json.dumps(name)} of {document['plugin']}. Install it, on every node."
                )
            advice = _advice(name, [*builtin, *known])
            raise _problems(f"{key}: unknown choice; got {json.dumps(name)}. {advice}")
        spec = spec_of(name)
    except ConfigError as error:
        raise _problems(f"{key}: {error}") from error
    try:
        if info.mode == "json":
            return spec.model_validate_json(json.dumps(document))
        return spec.model_validate(document)
    except ValidationError as error:
        raise _problems(*problem_lines(error, spec, document)) from error


def _problems(*lines: str) -> PydanticCustomError:
    return PydanticCustomError(ADDED, "{lines}", {"lines": "\n".join(lines)})


def _advice(name: str, known: Collection[str]) -> str:
    near = did_you_mean(name, known)
    if near.startswith("Known"):
        near += " If another package has it, install that on every node."
    return near


def _dumped(value: Any, info: core_schema.SerializationInfo) -> Any:
    return value.model_dump(mode=info.mode, by_alias=bool(info.by_alias))
