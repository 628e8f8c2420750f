"""Pydantic's findings as messages for the person who wrote the file."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

ADDED = "added"
"""Kind of pydantic's error that holds lines about a declaration of another package."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_RULES = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping",
    "model_type": "a mapping",
    "string_type": "text",
}
"""What each kind of wrong type should have been."""

_MAX_WORD = 100
"""Letters of a word that are compared with those that it may be: it takes their square."""

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}
_LENGTHS = {"too_short": ("at least", "min_length"), "too_long": ("at most", "max_length")}


def problem_lines(error: ValidationError, model: type[BaseModel], document: object) -> list[str]:
    """Describe every problem on a line of its own, without the file's name.

    Args:
        error: What pydantic raised.
        model: The schema.
        document: What was validated, as plain dicts and lists; None if not at hand, which
            makes paths less exact.

    Returns:
        Lines ``<dotted path>: <rule broken>; got <value>. <what to do>``, each once. List
        members are addressed by their name where they have one. A rule that concerns the
        whole document comes without a path.
    """
    errors = error.errors(include_url=False)
    found = [(_Place(model, document, item), item) for item in errors]
    lines: list[str] = []
    for place, item in found:
        if item["type"] not in _RULES:
            lines += _described(place, item)
        elif not any(place.holds(other) for other, _ in found):
            # A value that may have several types gets one line, not one for each; and none
            # if it has one of them, with a problem further in.
            types = [other["type"] for where, other in found if where.parts == place.parts]
            rules = list(dict.fromkeys(_RULES[kind] for kind in types if kind in _RULES))
            line = f"{place.prefix}must be {_either(rules)}; got {shortened(item['input'])}."
            lines.append(line + _quote_advice(rules, item["input"]))
    return list(dict.fromkeys(lines))


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Return advice on a mistyped word: the nearest valid one, or a list of them all."""
    known = list(valid)
    near = difflib.get_close_matches(word[:_MAX_WORD], known, n=1, cutoff=0.5)
    return f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(known)}."


def shortened(value: object) -> str:
    """Return a value as JSON, cut to 80 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Place:
    """Where a problem lies, in the user's document and in the schema.

    Pydantic's locations also name the union members it tried; those are not in the file.
    """

    def __init__(self, model: type[BaseModel], document: object, item: Any) -> None:
        parts: list[str] = []
        here = document
        # A file that is a union itself: the location begins with the name of a member.
        members: tuple[type[BaseModel], ...] = getattr(model, "members", lambda: (model,))()
        models: list[type[BaseModel]] = list(members)
        self.models = models
        location = item["loc"]
        for index, part in enumerate(location):
            tagged = [m for m in models if _tag(m) == part] if len(models) > 1 else []
            if tagged and isinstance(here, dict) and part in here.values():
                models = tagged
                continue
            if tagged and isinstance(here, dict) and isinstance(here.get(part), dict):
                # A short form, e.g. `lm_eval: {...}` for a task of that kind.
                models = tagged
                parts.append(str(part))
                here = here[part]
                continue
            last = index == len(location) - 1
            if isinstance(here, dict) and (part in here or (last and item["type"] == "missing")):
                self.models = models
                models = list(_children(models, part))
                parts.append(str(part))
                here = here.get(part)
            elif isinstance(here, list) and isinstance(part, int) and part < len(here):
                parts.append(_member_name(here, part))
                here = here[part]
            else:
                named = [m for m in models if m.__name__ == part]
                models = named or list(_children(models, part)) or models
        if item["type"] != "extra_forbidden":
            self.models = models
        self.parts = parts
        self.last = parts[-1] if parts else ""
        self.dotted = ".".join(parts)
        self.prefix = f"{self.dotted}: " if parts else ""

    def holds(self, other: _Place) -> bool:
        """Whether another place lies inside this one."""
        count = len(self.parts)
        return len(other.parts) > count > 0 and other.parts[:count] == self.parts

    @property
    def valid_keys(self) -> list[str]:
        """Keys that the schema knows at this place."""
        keys = {field.alias or name for m in self.models for name, field in _fields(m)}
        return sorted(keys)


def _described(place: _Place, item: Any) -> list[str]:
    kind, got, context = item["type"], shortened(item["input"]), item.get("ctx", {})
    prefix = place.prefix
    if kind == "value_error":
        return [prefix + line for line in str(context["error"]).splitlines()]
    if kind == ADDED:
        dot = f"{place.dotted}." if place.dotted else ""
        return [dot + line for line in str(context["lines"]).splitlines()]
    if kind == "extra_forbidden":
        return [f"{prefix}unknown key; got {got}. {did_you_mean(place.last, place.valid_keys)}"]
    if kind == "missing":
        return [f"{prefix}required key is missing. Add it."]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        key = str(context["discriminator"]).strip("'")
        where = f"{place.dotted}.{key}" if place.dotted else key
        if kind == "union_tag_not_found":
            if not isinstance(item["input"], dict):
                return [f"{prefix}must be a mapping; got {got}."]
            return [f"{where}: required key is missing. Add it."]
        tags = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        tag = str(context["tag"])
        return [f"{where}: unknown choice; got {shortened(tag)}. {did_you_mean(tag, tags)}"]
    if kind == "literal_error":
        choices = str(context["expected"])
        advice = ""
        if isinstance(item["input"], str):
            words = choices.replace(" or ", ", ").split(", ")
            near = difflib.get_close_matches(
                item["input"][:_MAX_WORD], [w.strip("'") for w in words], n=1
            )
            advice = f" Did you mean '{near[0]}'?" if near else ""
        return [f"{prefix}must be {choices}; got {got}.{advice}"]
    if kind in _BOUNDS:
        word, key = _BOUNDS[kind]
        return [f"{prefix}must be {word} {context[key]:g}; got {got}."]
    if kind in _LENGTHS:
        word, key = _LENGTHS[kind]
        count = context[key]
        things = "item" if count == 1 else "items"
        return [f"{prefix}must have {word} {count} {things}; got {got}."]
    if kind == "string_pattern_mismatch":
        return [f"{prefix}must match the pattern {context['pattern']}; got {got}."]
    if kind == "finite_number":
        return [f"{prefix}must be finite; got {got}."]
    message = item["msg"]
    return [f"{prefix}{message[0].lower()}{message[1:]}; got {got}."]


def _either(rules: list[str]) -> str:
    return rules[0] if len(rules) == 1 else f"{', '.join(rules[:-1])} or {rules[-1]}"


def _quote_advice(rules: list[str], value: object) -> str:
    # YAML reads an unquoted yes, no, on, off, 12 or 1e5 as something else than text.
    return " Quote it." if rules == ["text"] and isinstance(value, bool | int | float) else ""


def _member_name(members: list[Any], index: int) -> str:
    names = [member.get("name") if isinstance(member, dict) else None for member in members]
    name = names[index]
    usable = isinstance(name, str) and names.count(name) == 1 and _NAME.fullmatch(name)
    return str(name) if usable else str(index)


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    yield from model.model_fields.items()


def _children(models: list[type[BaseModel]], part: object) -> Iterator[type[BaseModel]]:
    for model in models:
        for name, field in _fields(model):
            if part in (name, field.alias):
                yield from _models_in(field.annotation)
                return
    # Not a field: the key of a mapping, whose values' models are known already.
    yield from models


def _tag(model: type[BaseModel]) -> str | None:
    """The value of a model's discriminating field, its first ``Literal`` of one choice."""
    for _, field in _fields(model):
        choices = typing.get_args(field.annotation)
        if typing.get_origin(field.annotation) is typing.Literal and len(choices) == 1:
            return str(choices[0])
    return None


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation):
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)
