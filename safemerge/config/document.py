"""Reading declared files: YAML in, a strict model out, every problem reported at once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from safemerge.config.problems import problem_lines
from safemerge.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


MAX_NODES = 100_000
"""Values that a document may hold, those behind each alias counted each time."""
MAX_DEPTH = 64
"""How deeply lists and mappings may be nested."""


class _Loader(yaml.SafeLoader):
    """A safe YAML loader of bounded documents.

    It refuses duplicate keys, reads ``1e-4`` as a number, and refuses at once what is nested too
    deeply or, by aliases of aliases, larger than any file that people write.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse("nested too deeply; flatten it", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                self._refuse("an alias holds itself", event.start_mark)
            return node
        self._sizes[node] = 1 + sum(self._sizes[child] for child in _children(node))
        if self._sizes[node] > MAX_NODES:
            rule = f"too large with its aliases; the limit is {MAX_NODES} values"
            self._refuse(rule, node.start_mark)
        return node

    @staticmethod
    def _refuse(rule: str, mark: Any) -> None:
        raise yaml.composer.ComposerError(None, None, rule, mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key!r}", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# A date is text as written, as in every file that safemerge reads.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return []


# PyYAML, after YAML 1.1, takes "1e-4" for text; JSON and every user take it for a number.
_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> Any:
    """Read one YAML document.

    Args:
        path: The file.

    Returns:
        Plain dicts, lists and scalars.

    Raises:
        ConfigError: If the file is missing, not UTF-8, not YAML, empty, or repeats a key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise ConfigError(
            f"{path}: must be a file; got a folder. Name the YAML file in it."
        ) from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Check the path.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: must be UTF-8 text; got byte {error.object[error.start]:#04x} "
            f"at offset {error.start}. Save it as UTF-8."
        ) from None
    except (OSError, ValueError) as error:
        # NOTE: a ValueError of a NUL in the name.
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot be read; got {reason}.") from None
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML; {error.problem}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML; {error}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply. Flatten it.") from None
    except ValueError as error:
        # NOTE: PyYAML lets through what Python says of a date or a number that cannot be.
        raise ConfigError(f"{path}: not a date or number; got: {error}. Quote it.") from None
    if document is None:
        raise ConfigError(f"{path}: must hold a document; got an empty file.")
    return document


def parse_document(document: object, model: type[Model], *, where: str) -> Model:
    """Validate a plain document against a strict model, reporting all problems at once.

    Args:
        document: What `read_yaml` returned.
        model: The schema.
        where: The file name (or other place) that messages start with.

    Returns:
        The validated, frozen model.

    Raises:
        ConfigError: One line a problem, each with file, dotted path, rule, value got and,
            for an unknown key, the nearest valid one.
    """
    try:
        problem = _unjsonable(document)
        if problem is not None:
            raise ConfigError(f"{where}: {problem}")
        text = json.dumps(document)
        # NOTE: a file says `lambda`; Python's name for it is not a second spelling.
        return model.model_validate_json(text, by_alias=True, by_name=False)
    except ValidationError as error:
        # NOTE: as JSON, since YAML keys need not be text.
        lines = [f"{where}: {line}" for line in problem_lines(error, model, json.loads(text))]
        raise ConfigError("\n".join(lines)) from None
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply, or an alias holds itself.") from None


def load_document(path: str | Path, model: type[Model]) -> Model:
    """Read and validate a YAML file; see `read_yaml` and `parse_document` for the errors."""
    path = Path(path)
    return parse_document(read_yaml(path), model, where=str(path))


_MAX_BITS = 1024
"""Of whole numbers: larger ones are no floats either."""


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unjsonable(value: object, path: str = "") -> str | None:
    """Say where a document holds a value that JSON has no form for."""
    members: list[tuple[str, object]] = []
    if isinstance(value, dict):
        members = [(str(key)[:200], item) for key, item in value.items()]
        members += [(f"{str(key)[:40]!r} (a key)", key) for key in value]
    elif isinstance(value, list):
        members = [(str(index), item) for index, item in enumerate(value)]
    elif isinstance(value, str) and ("\0" in value or not _is_encodable(value)):
        return f"{path}: must be text; got a NUL or half a character in {value[:40]!r}. Remove it."
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        return f"{path}: must be a number; got one of {value.bit_length()} bits. Make it smaller."
    elif value is not None and not isinstance(value, str | int | float | bool):
        kind = type(value).__name__
        return f"{path}: must be text, a number, true or false; got {kind} {value}. Quote it."
    for name, item in members:
        found = _unjsonable(item, f"{path}.{name}" if path else name)
        if found is not None:
            return found
    return None
