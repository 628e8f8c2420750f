"""Where the models of a mergekit file are: beside the file, where the command runs, on the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safemerge.config.mergekit_model import HUB_ID
from safemerge.errors import ConfigError


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
    told: set[str] = set()
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
        if text in told:
            continue
        told.add(text)
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
