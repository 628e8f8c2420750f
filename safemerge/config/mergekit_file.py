"""A mergekit file's outer form: method, models and slices, checked before it is translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from safemerge.config.mergekit_model import MergekitModel
from safemerge.errors import ConfigError

_TOP = frozenset(
    {"merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype"}
    | {"tokenizer_source", "tokenizer", "chat_template", "modules"}
)
_SLICE = frozenset({"sources", "base_model", "parameters"})
_DTYPES = ("float32", "bfloat16", "float16")


class Source(NamedTuple):
    """A model that is merged, and its own parameters."""

    model: MergekitModel
    parameters: Mapping[str, Any]


class MergekitFile:
    """What a mergekit file says, of the right kinds; parameters are as they were written.

    Args:
        document: What `read_yaml` returned.
        where: The file name that messages start with.
        methods: Merge methods that may be named.

    Raises:
        ConfigError: If the file is malformed, or uses what safemerge does not support.
    """

    def __init__(self, document: Mapping[str, Any], where: str, methods: tuple[str, ...]) -> None:
        self.where = where
        self._document = document
        self._check_top(methods)
        self.name: str = document["merge_method"]
        self.dtype: str | None = document.get("out_dtype") or document.get("dtype")
        self.tokenizer_source: str | None = document.get("tokenizer_source")
        self.parameters = self._mapping("parameters", document.get("parameters"))
        self.num_layers: int | None = None
        base = document.get("base_model")
        self.base = None if base is None else self._model("base_model", base)
        """The file's base model; None where it names none."""
        if document.get("slices") is not None:
            self.sources = self._slice()
        else:
            self.sources = self._sources("models", document.get("models"), frozenset())

    def error(self, key: str, rule: str, got: object, advice: str) -> ConfigError:
        """Return the error for a key: its rule, the value unless it is None, and what to do."""
        text = repr(got)
        value = "" if got is None else f"; got {text if len(text) <= 80 else text[:77] + '...'}"
        return ConfigError(f"{self.where}: mergekit's {key}: {rule}{value}. {advice} {key}.")

    def _check_top(self, methods: tuple[str, ...]) -> None:
        document = self._document
        for unknown in sorted(map(str, set(document) - _TOP)):
            raise self.error(unknown, "is no key of mergekit that safemerge knows", None, "Drop")
        name = document.get("merge_method")
        if name not in methods:
            raise self.error(
                "merge_method", f"must be one of {', '.join(methods)}", name, "Change"
            )
        for key in ("tokenizer", "chat_template", "modules"):
            if document.get(key) is not None:
                raise self.error(
                    key, "is not supported: the base's is kept", document[key], "Drop"
                )
        source = document.get("tokenizer_source")
        if source not in (None, "base", "union"):
            raise self.error("tokenizer_source", "must be base or union", source, "Change")
        for key in ("dtype", "out_dtype"):
            if document.get(key) not in (None, *_DTYPES):
                raise self.error(
                    key, f"must be one of {', '.join(_DTYPES)}", document[key], "Change"
                )

    def _slice(self) -> list[Source]:
        """Return the sources of the one slice, whose own base and parameters go before."""
        slices = self._document["slices"]
        if self._document.get("models") is not None or not _is_list(slices) or len(slices) != 1:
            got = f"{len(slices)} slices" if _is_list(slices) else slices
            raise self.error(
                "slices", "layers cannot be rearranged: one slice over all layers is taken",
                got, "Write models instead of",
            )  # fmt: skip
        place = "slices.0"
        whole = self._mapping(place, slices[0])
        for key in sorted(set(whole) - _SLICE):
            if whole[key] is not None:
                raise self.error(f"{place}.{key}", "is not supported", whole[key], "Drop")
        if whole.get("base_model") is not None:
            self.base = self._model(f"{place}.base_model", whole["base_model"])
        own = self._mapping(f"{place}.parameters", whole.get("parameters"))
        self.parameters = {**self.parameters, **own}
        found = self._sources(f"{place}.sources", whole.get("sources"), frozenset({"layer_range"}))
        ranges = [source.get("layer_range") for source in whole["sources"]]
        for index, item in enumerate(ranges):
            if not _is_list(item) or len(item) != 2 or not all(type(end) is int for end in item):
                raise self.error(
                    f"{place}.sources.{index}.layer_range",
                    "must be the first layer and the one to stop before",
                    item if item is not None else "none", "Write [0, LAYERS] as",
                )  # fmt: skip
        if any(item != ranges[0] for item in ranges) or ranges[0][0] != 0 or ranges[0][1] < 1:
            raise self.error(
                place, "sources must share one layer_range from 0", ranges,
                "Write models instead of",
            )  # fmt: skip
        self.num_layers = ranges[0][1]
        return found

    def _sources(self, place: str, listed: object, more: frozenset[str]) -> list[Source]:
        if not isinstance(listed, list) or not listed:
            raise self.error(place, "must list models", listed, "Add some to")
        found: list[Source] = []
        for index, entry in enumerate(listed):
            at = f"{place}.{index}"
            if not isinstance(entry, dict) or "model" not in entry:
                raise self.error(at, "must be a mapping with 'model'", entry, "Change")
            for key in sorted(map(str, set(entry) - {"model", "parameters"} - more)):
                raise self.error(f"{at}.{key}", "is not supported", entry.get(key), "Drop")
            model = self._model(f"{at}.model", entry["model"])
            if any(model == other.model for other in found):
                raise self.error(at, "lists a model again", model.text, "Drop")
            own = self._mapping(f"{at}.parameters", entry.get("parameters"))
            found.append(Source(model, own))
        return found

    def _mapping(self, place: str, given: object) -> dict[str, Any]:
        if given is None:
            return {}
        if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
            raise self.error(place, "must be a mapping of names", given, "Change")
        return dict(given)

    def _model(self, place: str, given: object) -> MergekitModel:
        try:
            return MergekitModel.parse(given)
        except ValueError as error:
            rule, advice = error.args
            raise self.error(place, rule, given, advice) from None


def _is_list(value: object) -> bool:
    return isinstance(value, list)
