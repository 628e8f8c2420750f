"""What a merge inherits of its parents, as the front matter of a model card on the Hub says it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from safemerge.config.checkpoint import CheckpointRef

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_PACKAGED = {
    "smollm2-135m-instruct": {
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "license": "apache-2.0",
        "language": "en",
    }
}
"""Models of pip packages: where they come from, by their name and the start of their folder's."""

_RESTRICTIONS = (
    (r"cc-by-n.|no-?deriv|non-?commercial|nvidia-open|research", 0),
    (r"other|llama|gemma|openrail|bigscience|deepfloyd|qwen|falcon|apple|tii|grok|health-ai", 1),
    (r"agpl", 2),
    (r"^gpl|^osl|cc-by-sa|eupl", 3),
    (r"lgpl|mpl|epl|cddl|ms-pl", 4),
    (r"cc-by-|odc-by|apache|mit|bsd|isc|zlib|artistic|ncsa|afl|ecl|postgresql|wtfpl", 5),
    (r"cc0|unlicense|pddl|odc-pddl", 6),
)
"""Licences of the Hub's list by what they ask of those who pass the work on, most first."""

_MAX_GENERATIONS = 8


class ParentCard(NamedTuple):
    """What is known of one parent of a merge."""

    name: str
    """In the recipe."""
    hub: tuple[str, ...]
    """The parent's own repository; of one that has none, those that it derives from."""
    is_published: bool
    """Whether `hub` is the parent itself."""
    license: str | None
    """Identifier of the Hub's list; None if it is not known."""
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    """Repositories of data sets that it was trained on, its own parents' included."""
    pipeline_tag: str | None = None

    @property
    def shown_license(self) -> str:
        """The licence in words."""
        if self.license == "other" and self.license_name is not None:
            return f"other ({self.license_name})"
        return self.license or "unknown"


def parent_cards(refs: Iterable[CheckpointRef]) -> list[ParentCard]:
    """Read what the folders of a merge's models say of themselves; the network is not asked.

    A model's README (its front matter), the marker of a training stage, a LoRA adapter's config
    and the hub's cache are read; a model on a line, on a stack or under an adapter is its parts.

    Args:
        refs: Models of a recipe, located; folders that are gone tell nothing.

    Returns:
        One entry a model, in order.
    """
    return [_read(ref, 0) for ref in refs]


def by_restriction(parents: Sequence[ParentCard]) -> list[ParentCard]:
    """Sort parents by licence: unknown ones first, then the most restrictive."""
    return sorted(parents, key=lambda parent: _rank(parent.license))


def front_matter(
    parents: Sequence[ParentCard],
    *,
    library: str = "transformers",
    tags: Sequence[str] = (),
    model_index: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the front matter of a merge's model card.

    The licence is the most restrictive of the parents', and ``unknown`` where one is not known.
    Folders of this machine are never in it.

    Args:
        parents: Base and experts.
        library: What loads the model.
        tags: Beside ``merge`` and ``safemerge``.
        model_index: The Hub's ``model-index``.

    Returns:
        YAML between ``---`` lines, without a newline at its end.
    """
    strictest = by_restriction(parents)[:1]
    pipelines = {parent.pipeline_tag for parent in parents if parent.pipeline_tag is not None}
    bases = _distinct(name for parent in parents for name in parent.hub)
    document: dict[str, Any] = {
        "base_model": bases,
        "base_model_relation": "merge" if bases else None,
        "library_name": library,
        "pipeline_tag": pipelines.pop() if len(pipelines) == 1 else "text-generation",
        "license": strictest[0].license or "unknown" if strictest else "unknown",
        "license_name": strictest[0].license_name if strictest else None,
        "license_link": strictest[0].license_link if strictest else None,
        "language": _distinct(word for parent in parents for word in parent.languages),
        "datasets": _distinct(name for parent in parents for name in parent.datasets),
        "tags": ["merge", "safemerge", *tags],
        "model-index": list(model_index),
    }
    said = {key: value for key, value in document.items() if value not in (None, [])}
    text = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{text.strip()}\n---"


def licence_lines(parents: Sequence[ParentCard]) -> list[str]:
    """Return Markdown lines on the parents' licences, the most restrictive first."""
    lines = ["| parent | repository | licence |", "| --- | --- | --- |"]
    for parent in by_restriction(parents):
        text = ", ".join(f"`{name}`" for name in parent.hub)
        if text and not parent.is_published:
            text = f"unpublished, derived from {text}"
        lines.append(
            f"| {parent.name} | {text or 'not recorded'} | {_plain(parent.shown_license)} |"
        )
    if any(_rank(parent.license) < 0 for parent in parents):
        lines += [
            "",
            "The licence of a parent is unknown: find it out before you pass this model on.",
        ]
    return lines


def _read(ref: CheckpointRef, generation: int) -> ParentCard:
    if ref.parts and (ref.between is not None or ref.stack is not None):
        return _joined(ref.name, [_read(part, generation + 1) for part in ref.parts])
    own = _read_one(ref, generation)
    if ref.on is None:
        return own
    return _joined(ref.name, [own, _read(ref.on, generation + 1)])


def _read_one(ref: CheckpointRef, generation: int) -> ParentCard:
    folder = None if ref.path is None else Path(ref.path)
    packaged = _packaged(ref, folder)
    if packaged is not None:
        names, language = (packaged["model"],), (packaged["language"],)
        return ParentCard(ref.name, names, True, packaged["license"], languages=language)
    hub = ref.hub or _repository(folder)
    card = {} if folder is None else _card_of(folder)
    above = [] if folder is None or generation >= _MAX_GENERATIONS else _ancestors(folder, card)
    parents = [_read(item, generation + 1) for item in above]
    inherited = _joined(ref.name, parents) if parents else ParentCard(ref.name, (), False, None)
    licensed = _licensed(card, inherited) if _texts(card.get("license")) else inherited
    return licensed._replace(
        hub=(hub,) if hub is not None else _hub_ids(card.get("base_model")) or inherited.hub,
        is_published=hub is not None,
        languages=_texts(card.get("language")) or inherited.languages,
        datasets=_distinct_tuple(
            [
                *_hub_ids(card.get("datasets"), plain=True),
                *_trained_on(folder),
                *inherited.datasets,
            ]
        ),
        pipeline_tag=_text(card.get("pipeline_tag")) or inherited.pipeline_tag,
    )


def _licensed(card: dict[str, Any], parent: ParentCard) -> ParentCard:
    return parent._replace(
        license=min(_texts(card.get("license")), key=_rank),
        license_name=_text(card.get("license_name")),
        license_link=_public(_text(card.get("license_link"))),
    )


def _joined(name: str, parts: Sequence[ParentCard]) -> ParentCard:
    """Return what is known of a model that is made of others."""
    strictest = by_restriction(parts)[0]
    pipelines = {part.pipeline_tag for part in parts}
    return ParentCard(
        name,
        _distinct_tuple(item for part in parts for item in part.hub),
        False,
        strictest.license,
        strictest.license_name,
        strictest.license_link,
        _distinct_tuple(item for part in parts for item in part.languages),
        _distinct_tuple(item for part in parts for item in part.datasets),
        pipelines.pop() if len(pipelines) == 1 else None,
    )


def _ancestors(folder: Path, card: dict[str, Any]) -> Iterator[CheckpointRef]:
    """Yield what a model was trained or merged from, as far as its folder tells."""
    spec = _json_of(folder / "safemerge_training.json").get("spec")
    base = spec.get("base") if isinstance(spec, dict) else None
    recipe = _json_of(folder / "safemerge_recipe.json")
    experts = recipe.get("experts")
    merged = [recipe.get("base"), *(experts if isinstance(experts, list) else [])]
    found = False
    for document in (base, *merged):
        try:
            ref = CheckpointRef.model_validate_json(json.dumps(document)).located(folder)
        except ValueError:
            continue
        found = True
        yield ref
    if not found and not _hub_ids(card.get("base_model")):
        named = _json_of(folder / "adapter_config.json").get("base_model_name_or_path")
        if isinstance(named, str) and Path(named).is_dir():
            yield CheckpointRef(name="base", path=named)
        elif isinstance(named, str) and _HUB_ID.fullmatch(named):
            yield CheckpointRef(name="base", hub=named)


def _trained_on(folder: Path | None) -> Iterator[str]:
    """Yield the hub's data sets that a training stage read."""
    spec = None if folder is None else _json_of(folder / "safemerge_training.json").get("spec")
    waiting: list[object] = [] if not isinstance(spec, dict) else [spec]
    while waiting:
        item = waiting.pop(0)
        if isinstance(item, dict):
            name = item.get("dataset")
            if item.get("kind") == "hub" and isinstance(name, str):
                yield name
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item


def _packaged(ref: CheckpointRef, folder: Path | None) -> dict[str, str] | None:
    if ref.package is not None:
        return _PACKAGED.get(ref.package)
    if folder is None or folder.parent.name != "models":
        return None
    name = next((name for name in _PACKAGED if folder.name.startswith(f"{name}-")), None)
    return None if name is None else _PACKAGED[name]


def _repository(folder: Path | None) -> str | None:
    """Return the repository of a snapshot in the hub's cache."""
    found = None if folder is None else _SNAPSHOT.search(folder.as_posix())
    return None if found is None else f"{found[1]}/{found[2]}"


def _card_of(folder: Path) -> dict[str, Any]:
    """Return the front matter of a folder's README; {} if there is none that can be read."""
    try:
        found = _FRONT_MATTER.match((folder / "README.md").read_text(encoding="utf-8"))
        document = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _json_of(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _rank(license: str | None) -> int:
    if license is None or license == "unknown":
        return -1
    found = (rank for words, rank in _RESTRICTIONS if re.search(words, license.lower()))
    return next(found, 1)


def _text(value: object) -> str | None:
    """Return the text of a field that may be a list, as the Hub takes either."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) and first else None


def _texts(value: object) -> tuple[str, ...]:
    given = value if isinstance(value, list) else [value]
    return tuple(item for item in given if isinstance(item, str) and item)


def _hub_ids(value: object, *, plain: bool = False) -> tuple[str, ...]:
    """Return the repositories that a field names; `plain` takes names without an owner too."""
    return tuple(
        item
        for item in _texts(value)
        if _HUB_ID.fullmatch(item) or (plain and re.fullmatch(r"[\w.-]+", item))
    )


def _public(link: str | None) -> str | None:
    """Return a link, or a file's name in the repository; nothing of a folder of a machine."""
    if link is None or link.startswith(("http://", "https://")):
        return link
    return link.rpartition("/")[2] or None


def _distinct(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _distinct_tuple(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
