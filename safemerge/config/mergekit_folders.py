"""Where the models of a mergekit file lie: beside the file, or where the command is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safemerge.errors import ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate_models(document: dict[str, Any], file: Path, current: Path) -> Iterator[str]:
    """Replace the paths of a translated mergekit file by folders that exist.

    A relative path is looked up from the file's folder, then from the current one, from where
    mergekit takes it.

    Args:
        document: A recipe as `recipe_of_mergekit` made it; changed in place.
        file: The mergekit file.
        current: Folder that the command runs in.

    Yields:
        A line for each path that both folders hold, saying which was taken.

    Raises:
        ConfigError: If a folder is in neither place; says so if it looks like a hub id.
    """
    for ref in (document["base"], *document["experts"]):
        found = _found(ref["path"], file.parent, current)
        if not found:
            raise ConfigError(_missing(file, ref["path"]))
        if len(found) > 1:
            yield (
                f"model {ref['path']!r} is beside {file.name} and in the current folder too; "
                f"taking {found[0]}"
            )
        ref["path"] = str(found[0])


def _found(text: str, *folders: Path) -> list[Path]:
    try:
        given = Path(text).expanduser()
        places = dict.fromkeys((folder / given).resolve() for folder in folders)
        return [place for place in places if place.exists()]
    except (OSError, RuntimeError, ValueError):
        # NOTE: an unknown user after ~, a NUL, a name too long: no folder has such a name.
        return []


def _missing(file: Path, text: str) -> str:
    where = f"{file}: mergekit's model {text!r}"
    if _HUB_ID.fullmatch(text):
        name = text.rpartition("/")[2]
        return (
            f"{where}: must be a local folder; got what looks like a hub id, and nothing is "
            f"downloaded. Run 'hf download {text} --local-dir {name}' and name that folder, "
            f"'./{name}', in its place."
        )
    return (
        f"{where}: must be a folder, absolute or from the file's folder or the current one; got "
        f"none. Check the path."
    )
