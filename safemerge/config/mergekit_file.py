"""A mergekit file's outer form: method, models and slices, checked before it is translated."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple, Self, TypeGuard

from safemerge.errors import ConfigError

Plain = float | list[float]
"""One number, or a gradient's."""

_CONDITION = frozenset({"filter", "value"})


class Entry(NamedTuple):
    """A value, and the part of a tensor's name that it is for."""

    filter: str | None
    """None for every tensor."""
    value: Plain


class Level(NamedTuple):
    """Parameters of one place of the file: of a model, of a slice or of the whole file."""

    place: str
    parameters: Mapping[str, Any]


class Malformed(NamedTuple):
    """What is wrong with a setting."""

    place: str
    rule: str
    got: object


def read_setting(
    key: str, levels: Iterable[Level], *, default: float | None = None
) -> tuple[Entry, ...] | Malformed:
    """Return a parameter's entries, in the order in which mergekit tries them.

    A setting whose filters all fail falls through to the next level, and from the last one to
    the method's default.

    Args:
        key: The parameter's name.
        levels: The model's own parameters first, the whole file's last.
        default: mergekit's; None where a value is needed.

    Returns:
        Entries of which the last is for every tensor, or what is wrong.
    """
    found: list[Entry] = []
    place = "parameters"
    for level in levels:
        place = level.place
        if level.parameters.get(key) is None:
            continue
        entries = _entries(f"{place}.{key}", level.parameters[key])
        if isinstance(entries, Malformed):
            return entries
        found += entries
        if found[-1].filter is None:
            return tuple(found)
    if default is None:
        if found:
            return Malformed(f"{place}.{key}", "must end with a value for the rest", None)
        return Malformed(f"{place}.{key}", "is needed", None)
    return (*found, Entry(None, default))


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def in_slice(value: Plain, *, first: int, last: int, num_layers: int) -> Plain:
    """Return a slice's gradient as anchors over all layers of the result, one for each layer.

    Args:
        value: A number, or a gradient over the slice's layers.
        first: The slice's first layer in the result.
        last: Its last.
        num_layers: Layers of the result.

    Returns:
        The number, or a value for each layer; outside the slice that of its nearest layer.
    """
    if not isinstance(value, list):
        return value
    if num_layers == 1:
        return value[-1]
    return [
        _at(
            value, (min(max(layer, first), last) - first) / (last - first) if last > first else 1.0
        )
        for layer in range(num_layers)
    ]


def at_start(value: Plain) -> float:
    """Return what mergekit reads of a gradient outside the layers: the first number."""
    return value[0] if isinstance(value, list) else value


def _at(gradient: Sequence[float], depth: float) -> float:
    place = depth * (len(gradient) - 1)
    before = min(int(place), len(gradient) - 2)
    share = place - before
    return gradient[before] * (1.0 - share) + gradient[before + 1] * share


def _entries(place: str, given: object) -> list[Entry] | Malformed:
    plain = _plain(given)
    if plain is not None:
        return [Entry(None, plain)]
    items: list[Any] = given if isinstance(given, list) else [given]
    if not items or not all(isinstance(item, dict) for item in items):
        return Malformed(place, "must be a number or a list", given)
    found: list[Entry] = []
    for item in items:
        text, number = item.get("filter"), _plain(item.get("value"))
        if number is None or not isinstance(text, str | None) or set(item) - _CONDITION:
            rule = "must have a value, and at most a filter, in each item"
            return Malformed(place, rule, item)
        found.append(Entry(None if text in (None, "", "*") else text, number))
        if found[-1].filter is None:
            break
    return found


def _plain(given: object) -> Plain | None:
    """Return a number, or the numbers of a gradient; None for anything else."""
    number = _number(given)
    if number is not None:
        return number
    if not isinstance(given, list) or not given:
        return None
    numbers = [_number(item) for item in given]
    found = [item for item in numbers if item is not None]
    if len(found) < len(given):
        return None
    return found if len(found) > 1 else found[0]


def _number(given: object) -> float | None:
    """Return a number, also of a text such as ``1e-5``, which YAML 1.1 does not take for one."""
    if isinstance(given, str):
        try:
            given = float(given)
        except ValueError:
            return None
    return float(given) if is_number(given) else None


HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What a hub repository's name looks like."""


class MergekitModel(NamedTuple):
    """A model's folder or hub id, or an adapter's and its model's."""

    path: str
    """Folder or hub id of the weights: the adapter's, if there is one."""
    host: str | None = None
    """The model that the adapter is added to; None for a whole model."""
    revision: str | None = None
    """Branch, tag or commit of `path` on the hub."""
    host_revision: str | None = None
    """The same of `host`."""

    @classmethod
    def parse(cls, given: object) -> Self:
        """Read a model's name as mergekit has it, where ``+`` and ``@`` have a meaning in text.

        Raises:
            ValueError: With a rule and advice, if it is malformed, has a revision of a folder, or
                names an architecture.
        """
        if isinstance(given, str):
            parts = [_place(part) for part in given.split("+")]
            if len(parts) > 2:
                raise ValueError("must be a folder, or folder+adapter", "Change")
        else:
            if not isinstance(given, dict) or given.get("model") is None:
                raise ValueError("must be a model's folder", "Change")
            for key in sorted(map(str, set(given) - {"model", "lora"})):
                if given.get(key) is not None:
                    raise ValueError(f"{key} is not supported", f"Drop {key} from")
            named = [given.get(key) for key in ("model", "lora")]
            parts = [_place(item) for item in named if item is not None]
        (path, revision), *host = reversed(parts)
        if not host:
            return cls(path, revision=revision)
        return cls(path, host[0][0], revision, host[0][1])

    @property
    def under(self) -> MergekitModel | None:
        """The model that an adapter is added to; None for a whole model."""
        return None if self.host is None else MergekitModel(self.host, revision=self.host_revision)

    @property
    def text(self) -> str:
        """The name in one line, for messages."""
        own = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return own if self.under is None else f"{self.under.text}+{own}"

    def source(self) -> dict[str, str]:
        """Return where it is, as a recipe's reference says it: ``path``, or ``hub``."""
        if self.revision is None:
            return {"path": self.path}
        return {"hub": self.path, "revision": self.revision}

    def written(self) -> str | dict[str, Any]:
        """Return the name for a mergekit file: text, unless a folder has a sign of mergekit's."""
        parts = [self.path] if self.host is None else [self.host, self.path]
        if not any(sign in part for part in parts for sign in "+@"):
            return self.text
        revisions = [self.revision] if self.host is None else [self.host_revision, self.revision]
        named = [
            {"path": part} if revision is None else {"path": part, "revision": revision}
            for part, revision in zip(parts, revisions, strict=True)
        ]
        return dict(zip(("model", "lora"), named, strict=False))


def _place(given: object) -> tuple[str, str | None]:
    """Return folder or hub id, and revision."""
    revision: object = None
    if isinstance(given, dict):
        if set(given) - {"path", "revision"}:
            raise ValueError("must be a model's folder", "Change")
        revision = given.get("revision")
        given = given.get("path")
    elif isinstance(given, str) and "@" in given:
        given, _, revision = given.partition("@")
    if not isinstance(given, str) or not given.strip():
        raise ValueError("must be a model's folder", "Change")
    if revision is None:
        return normpath(given), None
    if not isinstance(revision, str) or not revision.strip() or not HUB_ID.fullmatch(given):
        raise ValueError(
            "a revision (after @) is one of a hub repository, ORG/NAME",
            "For a folder with @ in its name write 'model: {model: {path: FOLDER}}', else change",
        )
    return given, revision


def locate_models(document: dict[str, Any], file: Path, current: Path) -> Iterator[str]:
    """Replace the paths of a translated mergekit file by folders that exist, or hub repositories.

    A relative path is looked up from the file's folder, then from the current one, from where
    mergekit takes it. What is in neither and looks like a hub id is one, as for mergekit.

    Args:
        document: A recipe as `recipe_of_mergekit` made it; changed in place.
        file: The mergekit file.
        current: Folder that the command runs in.

    Yields:
        A line for each path that both folders hold, saying which was taken, and for each that is
        taken from the hub.

    Raises:
        ConfigError: If folders are in neither place; names all of them.
    """
    missing: dict[str, None] = {}
    shown: set[str] = set()
    for ref in _references(document["base"], *document["experts"]):
        if "path" not in ref:
            continue
        text = ref["path"]
        found = _found(text, file.parent, current)
        if found:
            ref["path"] = str(found[0])
        elif HUB_ID.fullmatch(text):
            del ref["path"]
            ref["hub"] = text
        else:
            missing[
                f"{file}: mergekit's model {text!r}: must be a folder, absolute or from the "
                f"file's folder or the current one, or a hub id; got none. Check the path."
            ] = None
        if text in shown:
            continue
        shown.add(text)
        if len(found) > 1:
            yield (
                f"model {text!r} is beside {file.name} and in the current folder too; "
                f"taking {found[0]}"
            )
        if "hub" in ref:
            yield f"model {text!r} is no folder here; taking it from the hub"
    if missing:
        raise ConfigError("\n".join(missing))


def _references(*refs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for ref in refs:
        yield from _references(*(item["model"] for item in ref.get("stack", ())))
        if "on" in ref:
            yield from _references(ref["on"])
        yield ref


def _found(text: str, *folders: Path) -> list[Path]:
    try:
        given = Path(text).expanduser()
        places = dict.fromkeys((folder / given).resolve() for folder in folders)
        return [place for place in places if place.exists()]
    except (OSError, RuntimeError, ValueError):
        # NOTE: an unknown user after ~, a NUL, a name too long: no folder has such a name.
        return []


_TOP = frozenset(
    {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "name"}
    | {"tokenizer_source", "tokenizer", "chat_template", "modules"}
)
_SLICE = frozenset({"sources", "base_model", "parameters"})
_TOKENIZER = frozenset({"source", "tokens", "pad_to_multiple_of"})
_DTYPES = ("float32", "bfloat16", "float16")


class Source(NamedTuple):
    """A model that is merged, its own parameters, and which of its layers."""

    model: MergekitModel
    own: Level
    layers: tuple[int, int] | None = None
    """First layer and the one to stop before; None for all."""


class TokenSource(NamedTuple):
    """Where the row of a token is taken from."""

    model: MergekitModel | None
    """None for zeros."""
    token: str | int | None
    """The token there, or its id; None for the same one."""
    force: bool


class Slice(NamedTuple):
    """Layers of the result, and what they are merged from."""

    place: str
    sources: tuple[Source, ...]
    base: MergekitModel | None
    shared: tuple[Level, ...]
    """Parameters of the slice first, then those of the whole file."""


class MergekitFile:
    """What a mergekit file says, of the right kinds; parameters are as they were written.

    Args:
        document: What `read_yaml` returned.
        where: The file name that messages start with.
        methods: Merge methods that may be named.
    """

    def __init__(self, document: Mapping[str, Any], where: str, methods: tuple[str, ...]) -> None:
        self.where = where
        self.problems: list[str] = []
        """What is wrong with the file, a line each."""
        self._document = document
        self.name: str = str(document.get("merge_method"))
        self._check_top(methods)
        self.dtype = self._dtype()
        """Type of the result; None for the models'."""
        self.base = self._model("base_model", document.get("base_model"))
        """The file's base model; None where it names none."""
        self.tokens: dict[str, TokenSource] = {}
        """Sources of single rows by token."""
        self.pad_to_multiple_of: int | None = None
        """What the number of rows is a multiple of; None for one row a token."""
        self.vocabulary, self.tokenizer = self._tokenizer()
        """``base``, ``union`` or None, and the model whose tokenizer is taken instead."""
        self.chat_template: str | None = document.get("chat_template")
        """``auto``, a name, or Jinja."""
        self.levels: tuple[Level, ...] = (
            Level("parameters", self._mapping("parameters", document)),
        )
        """Parameters of the whole file."""
        self.slices = self._slices()
        """Slices in order; of a file with models one, over all layers."""

    def problem(self, key: str, rule: str, got: object, advice: str) -> None:
        """Note what is wrong with a key: its rule, the value unless it is None, what to do."""
        text = repr(got)
        value = "" if got is None else f"; got {text if len(text) <= 80 else text[:77] + '...'}"
        self.problems.append(f"{self.where}: mergekit's {key}: {rule}{value}. {advice} {key}.")

    def _check_top(self, methods: tuple[str, ...]) -> None:
        document = self._document
        for unknown in sorted(map(str, set(document) - _TOP)):
            self.problem(unknown, "is no key of mergekit that safemerge knows", None, "Drop")
        if self.name not in methods:
            self.problem(
                "merge_method", f"must be one of {', '.join(methods)}", self.name, "Change"
            )
        given = [key for key in ("models", "slices", "modules") if document.get(key) is not None]
        if len(given) != 1:
            got = " and ".join(given) or None
            self.problem(
                "models",
                "must be given, or slices, or modules, and one of them alone",
                got,
                "Keep",
            )
        if not isinstance(document.get("chat_template"), str | None):
            self.problem("chat_template", "must be text", document["chat_template"], "Change")

    def _dtype(self) -> str | None:
        found: dict[str, str] = {}
        for key in ("out_dtype", "dtype"):
            given = self._document.get(key)
            if given is None:
                continue
            name = str(given).removeprefix("torch.")
            # NOTE: what mergekit computes in changes no more than roundings.
            allowed = (*_DTYPES, "float64") if key == "dtype" and found else _DTYPES
            if name not in allowed:
                self.problem(key, f"must be one of {', '.join(_DTYPES)}", given, "Change")
            found[key] = name
        return next(iter(found.values()), None)

    def _tokenizer(self) -> tuple[str | None, MergekitModel | None]:
        """Read both ways of saying whose tokenizer the result takes."""
        place, source = "tokenizer_source", self._document.get("tokenizer_source")
        whole = self._document.get("tokenizer")
        if whole is not None:
            if source is not None:
                self.problem("tokenizer", "must not stand beside tokenizer_source", whole, "Drop")
            given = self._mapping("tokenizer", self._document)
            for key in sorted(set(given) - _TOKENIZER):
                self.problem(f"tokenizer.{key}", "is no key of mergekit", given[key], "Drop")
            self.tokens = self._token_sources(given)
            multiple = given.get("pad_to_multiple_of")
            if multiple is not None and (type(multiple) is not int or multiple < 1):
                rule = "must be a whole number, 1 or more"
                self.problem("tokenizer.pad_to_multiple_of", rule, multiple, "Change")
            elif multiple is not None:
                self.pad_to_multiple_of = multiple
            place, source = "tokenizer.source", given.get("source", "union")
        if source in (None, "base", "union"):
            return source, None
        return None, self._model(place, source)

    def _token_sources(self, tokenizer: Mapping[str, Any]) -> dict[str, TokenSource]:
        found: dict[str, TokenSource] = {}
        for token, given in self._mapping("tokens", tokenizer, "tokenizer.").items():
            place = f"tokenizer.tokens.{token}"
            if not isinstance(given, dict) or set(given) - {"source", "force"}:
                self.problem(place, "must have a source, and at most force", given, "Change")
                continue
            source, force = given.get("source"), given.get("force", False)
            if source is None or not isinstance(force, bool):
                self.problem(place, "must have a source, and force true or false", given, "Change")
                continue
            kind = source.get("kind") if isinstance(source, dict) else None
            if kind == "zero" and len(source) == 1:
                found[token] = TokenSource(None, None, force)
                continue
            there = [source[key] for key in ("token", "token_id") if key in source] if kind else []
            if kind is not None and (
                kind != "model_token"
                or set(source) - {"kind", "model", "token", "token_id"}
                or len(there) != 1
                or type(there[0]) not in (str, int)
            ):
                rule = "must be a model, {kind: zero}, or {kind: model_token, model, token}"
                self.problem(f"{place}.source", rule, source, "Change")
                continue
            named = source.get("model") if kind else source
            model = self._model(f"{place}.source", named or "")
            if model is not None:
                found[token] = TokenSource(model, there[0] if there else None, force)
        return found

    def _slices(self) -> tuple[Slice, ...]:
        document, outer = self._document, self.levels
        modules = document.get("modules")
        place = ""
        if modules is not None:
            if not isinstance(modules, dict) or len(modules) != 1:
                rule = "must be one module, the language model's"
                self.problem("modules", rule, modules, "Write models or slices instead of")
                return ()
            name, inner = next(iter(modules.items()))
            place = f"modules.{name}."
            if not isinstance(inner, dict):
                self.problem(place[:-1], "must be a mapping of names", inner, "Change")
                return ()
            document = inner
            level = Level(f"{place}parameters", self._mapping("parameters", inner, place))
            outer = (level, *outer)
        if document.get("slices") is None:
            sources = self._sources(f"{place}models", document.get("models"), sliced=False)
            return (Slice(f"{place}models", sources, self.base, outer),) if sources else ()
        given = document["slices"]
        if not isinstance(given, list) or not given:
            self.problem(f"{place}slices", "must list slices", given, "Change")
            return ()
        found = [
            self._slice(f"{place}slices.{at}", whole, outer) for at, whole in enumerate(given)
        ]
        return tuple(item for item in found if item is not None)

    def _slice(self, place: str, whole: object, outer: tuple[Level, ...]) -> Slice | None:
        if not isinstance(whole, dict) or not all(isinstance(key, str) for key in whole):
            self.problem(place, "must be a mapping of names", whole, "Change")
            return None
        for key in sorted(set(whole) - _SLICE):
            if whole[key] is not None:
                self.problem(f"{place}.{key}", "is not supported", whole[key], "Drop")
        base = self._model(f"{place}.base_model", whole.get("base_model")) or self.base
        own = Level(f"{place}.parameters", self._mapping("parameters", whole, f"{place}."))
        sources = self._sources(f"{place}.sources", whole.get("sources"), sliced=True)
        if (
            len({end - start for start, end in filter(None, (item.layers for item in sources))})
            > 1
        ):
            ranges = [list(item.layers or ()) for item in sources]
            rule = "sources of a slice must have the same number of layers"
            self.problem(place, rule, ranges, "Change layer_range in")
        return Slice(place, sources, base, (own, *outer)) if sources else None

    def _sources(self, place: str, listed: object, *, sliced: bool) -> tuple[Source, ...]:
        if not isinstance(listed, list) or not listed:
            if listed is not None or place.endswith("sources"):
                self.problem(place, "must list models", listed, "Add some to")
            return ()
        found: list[Source] = []
        allowed = {"model", "parameters"} | ({"layer_range"} if sliced else set())
        for index, entry in enumerate(listed):
            at = f"{place}.{index}"
            if not isinstance(entry, dict) or "model" not in entry:
                self.problem(at, "must be a mapping with 'model'", entry, "Change")
                continue
            for key in sorted(map(str, set(entry) - allowed)):
                self.problem(f"{at}.{key}", "is not supported", entry.get(key), "Drop")
            model = self._model(f"{at}.model", entry["model"] or "")
            own = Level(f"{at}.parameters", self._mapping("parameters", entry, f"{at}."))
            layers = self._layers(at, entry.get("layer_range")) if sliced else None
            if model is None or (sliced and layers is None):
                continue
            if any(model == other.model for other in found):
                self.problem(at, "lists a model again", model.text, "Drop")
                continue
            found.append(Source(model, own, layers))
        return tuple(found)

    def _layers(self, place: str, given: object) -> tuple[int, int] | None:
        if isinstance(given, list) and len(given) == 2 and all(type(end) is int for end in given):
            start, stop = given
            if 0 <= start < stop:
                return start, stop
        rule = "must be the first layer and the one to stop before"
        got = "none" if given is None else given
        self.problem(f"{place}.layer_range", rule, got, "Write [FIRST, STOP] as")
        return None

    def _mapping(self, key: str, inside: Mapping[str, Any], before: str = "") -> dict[str, Any]:
        given = inside.get(key)
        if given is None:
            return {}
        if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
            self.problem(f"{before}{key}", "must be a mapping of names", given, "Change")
            return {}
        return dict(given)

    def _model(self, place: str, given: object) -> MergekitModel | None:
        if given is None:
            return None
        try:
            return MergekitModel.parse(given)
        except ValueError as error:
            rule, advice = error.args
            self.problem(place, rule, given, advice)
            return None
