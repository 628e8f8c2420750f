"""A mergekit file's outer form: method, models and slices, checked before it is translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from safemerge.config.mergekit_model import MergekitModel
from safemerge.config.mergekit_setting import Level

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
