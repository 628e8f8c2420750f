"""mergekit's YAML as a recipe: mergekit's numbers, and a clear word on what has none here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from safemerge.config.mergekit_file import (
    Level,
    Malformed,
    MergekitFile,
    MergekitModel,
    read_setting,
)
from safemerge.config.mergekit_method import (
    NEEDS_BASE,
    READ,
    SUPPORTED,
    TAKES_BASE,
    Arrangement,
    Groups,
    Layers,
    MethodWriter,
    Setting,
    Slot,
    arrange,
    model_names,
    reference,
)
from safemerge.config.problems import did_you_mean
from safemerge.errors import ConfigError

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "chatml": (
            "{%- for message in messages -%}"
            "{{ '<|im_start|>' ~ message['role'] ~ '\n' ~ message['content'] ~ '<|im_end|>\n' }}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
        ),
        "llama3": (
            "{{- bos_token -}}"
            "{%- for message in messages -%}"
            "{{ '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\n\n' "
            "~ (message['content'] | trim) ~ '<|eot_id|>' }}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}"
            "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
            "{%- endif -%}"
        ),
    }
)
"""Jinja by the name that mergekit has for it; written from the formats' descriptions."""

_SHORTEST = 20


def is_jinja(text: str) -> bool:
    """Tell whether a chat template is written out, by mergekit's measure."""
    return len(text) >= _SHORTEST and "{" in text


AUTO = "auto"
"""A chat template that is the one most models have."""

_EVERY_PARAMETER = frozenset({"dtype", *(key for keys in READ.values() for key in keys)})


class MergekitRecipe(NamedTuple):
    """A recipe made from a mergekit file."""

    document: dict[str, Any]
    """The recipe as plain dicts and lists, for `parse_document`."""
    num_layers: int | None
    """Layers that a ``layer_range`` says the models have; None where none is given."""
    notes: tuple[str, ...] = ()
    """What mergekit does not read of the file, a line each."""
    apart: tuple[tuple[str, str], ...] = ()
    """Pairs of filters that must not match one tensor."""
    auto_template: bool = False
    """Whether the chat template is to be the one that most models have."""


def is_mergekit(document: object) -> bool:
    """Tell whether a document is a mergekit file: it names a ``merge_method``."""
    return isinstance(document, dict) and "merge_method" in document


def recipe_of_mergekit(document: Mapping[str, Any], *, where: str) -> MergekitRecipe:
    """Translate a mergekit file, so that the recipe gives mergekit 0.1.5's numbers.

    Models are named by the last part of their path. Gradients become anchors, read as mergekit
    reads them (``anchors: mergekit``); filters and slices become layer groups; layers of several
    models become a stack. Weights are merged in float32 whatever mergekit's ``dtype``, which is
    taken as the result's.

    Args:
        document: What `read_yaml` returned.
        where: The file name that messages start with.

    Returns:
        The recipe's document, and what it presumes.

    Raises:
        ConfigError: If the file is malformed or uses what safemerge does not support; names all
            of it, a line each.
    """
    return _Translation(document, where).result()


class _Translation:
    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        self.file = MergekitFile(document, where, SUPPORTED)
        self.notes: list[str] = []
        self.settings: list[Setting] = []

    def result(self) -> MergekitRecipe:
        file, found = self.file, None
        if file.name in SUPPORTED and file.slices:
            self._check_parameters()
            named = any(item.base is not None for item in file.slices)
            needs_base = file.name in NEEDS_BASE or (file.name in TAKES_BASE and named)
            arrangement = arrange(file, needs_base=needs_base)
            if arrangement is not None:
                found = self._recipe(arrangement, needs_base)
        self._check_template()
        if file.problems or found is None:
            raise ConfigError("\n".join(dict.fromkeys(file.problems)))
        return found

    def _recipe(self, arrangement: Arrangement, needs_base: bool) -> MergekitRecipe | None:
        file = self.file
        if file.name in NEEDS_BASE and not arrangement.has_base:
            file.problem("base_model", f"is needed by {file.name}", None, "Add it as")
            return None
        base = self._base(arrangement)
        models = [slot.model for slot in arrangement.slots]
        extra = [] if file.tokenizer is None else [file.tokenizer]
        names = model_names([base, *models, *extra])
        merged = arrangement.slots[1:] if needs_base else arrangement.slots
        writer = MethodWriter(
            file,
            names=[names[slot.model] for slot in merged],
            base=names[base] if needs_base else None,
            value=lambda key, at, default: self._value(arrangement, merged, key, at, default),
        )
        method = writer.method()
        if method is None or file.problems:
            return None
        lengths = [
            stop - start for start, stop in (self._range(item) for item in arrangement.slices)
        ]
        groups = Groups(self.settings, lengths)
        recipe: dict[str, Any] = {
            "base": reference(base, names[base], None),
            "experts": [
                reference(model, names[model], base)
                for model in dict.fromkeys([*models, *extra])
                if model != base
            ],
            "method": _resolved(method, groups),
            "layer_groups": groups.layer_groups(),
        }
        if groups.has_gradients:
            recipe["anchors"] = "mergekit"
        if file.dtype is not None:
            recipe["dtype"] = file.dtype
        auto = self._tokenizer(recipe, names, base)
        self._note_rows()
        return MergekitRecipe(
            recipe, arrangement.num_layers, tuple(self.notes), tuple(groups.apart), auto
        )

    def _base(self, arrangement: Arrangement) -> MergekitModel | Layers:
        """Return the recipe's base: the file's, or the first model, or what its adapter is on."""
        first = arrangement.slots[0].model
        if self.file.base is None and isinstance(first, MergekitModel) and first.under is not None:
            return first.under
        return first

    @staticmethod
    def _range(item: Any) -> tuple[int, int]:
        layers: tuple[int, int] | None = item.sources[0].layers
        return layers or (0, 1)

    def _value(
        self,
        arrangement: Arrangement,
        merged: Sequence[Slot],
        key: str,
        at: int | None,
        default: float | None,
    ) -> Setting | None:
        """Return a parameter of the slot at a place among the merged, or of the whole merge."""
        found = []
        for index, item in enumerate(arrangement.slices):
            own = () if at is None else (merged[at].sources[index].own,)
            entries = read_setting(key, (*own, *item.shared), default=default)
            if isinstance(entries, Malformed):
                advice = "Add it as" if entries.rule == "is needed" else "Change"
                self.file.problem(entries.place, entries.rule, entries.got, advice)
                return None
            found.append(entries)
        setting = Setting(tuple(found))
        self.settings.append(setting)
        return setting

    def _check_parameters(self) -> None:
        """Refuse what is no parameter of mergekit, and note what it does not read."""
        name = self.file.name
        read = READ[name]
        for level, of_model in self._levels():
            for key in level.parameters:
                place = f"{level.place}.{key}"
                if key not in _EVERY_PARAMETER:
                    known = sorted(read)
                    self.file.problem(
                        place, f"is no parameter of mergekit's {name}", level.parameters[key],
                        f"{did_you_mean(key, known)} Else drop",
                    )  # fmt: skip
                elif key not in read:
                    self.notes.append(f"{place}: mergekit's {name} does not read it; left out")
                elif of_model and not read[key]:
                    self.notes.append(
                        f"{place}: mergekit reads it for the whole merge only; left out"
                    )

    def _levels(self) -> Iterator[tuple[Level, bool]]:
        """Yield every place with parameters once, and whether it is a model's."""
        outer = [(level, False) for item in self.file.slices for level in item.shared]
        own = [(source.own, True) for item in self.file.slices for source in item.sources]
        seen: set[str] = set()
        for level, of_model in (*reversed(outer), *own):
            if level.place not in seen:
                seen.add(level.place)
                yield level, of_model

    def _tokenizer(
        self,
        recipe: dict[str, Any],
        names: Mapping[MergekitModel | Layers, str],
        base: MergekitModel | Layers,
    ) -> bool:
        """Say whose tokenizer and template the result takes; whether that is to be found out."""
        file = self.file
        chosen: dict[str, Any] = {}
        if file.vocabulary is not None or file.tokenizer == base:
            recipe["vocabulary"] = file.vocabulary or "base"
        elif file.tokenizer is not None:
            recipe["vocabulary"] = "tokenizer"
            chosen["from"] = names[file.tokenizer]
        for token, row in file.tokens.items():
            place = f"tokenizer.tokens.{token}.source"
            if row.model is not None and row.model not in names:
                known = "must be one of the merged models"
                file.problem(place, known, row.model.text, "Change")
                continue
            of = {} if row.model is None else {"from": names[row.model]}
            there = {} if row.token is None else {"token": row.token}
            rows = chosen.setdefault("tokens", {})
            rows[token] = {**of, **there, **({"force": True} if row.force else {})}
        if file.pad_to_multiple_of is not None:
            chosen["pad_to_multiple_of"] = file.pad_to_multiple_of
        template = file.chat_template
        if template and template != AUTO:
            chosen["chat_template"] = {"text": TEMPLATES.get(template, template)}
        if chosen:
            recipe["tokenizer"] = chosen
        return template == AUTO

    def _check_template(self) -> None:
        given = self.file.chat_template
        if isinstance(given, str) and given not in ("", AUTO, *TEMPLATES) and not is_jinja(given):
            known = ", ".join((AUTO, *TEMPLATES))
            self.file.problem(
                "chat_template", f"must be {known}, or Jinja", given, "Write the template out as"
            )

    def _note_rows(self) -> None:
        file = self.file
        if (file.vocabulary or file.tokenizer) is None or file.pad_to_multiple_of is not None:
            return
        self.notes.append(
            "tokenizer: the result keeps the base's number of embedding rows, where mergekit has "
            "one for each token; tokenizer: {pad_to_multiple_of: 1} gives that"
        )


def _resolved(value: Any, groups: Groups) -> Any:
    """Return a method's document with its settings as coefficients."""
    if isinstance(value, Setting):
        return groups.coefficient(value)
    if isinstance(value, dict):
        return {key: _resolved(item, groups) for key, item in value.items()}
    return value
