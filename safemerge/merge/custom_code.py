"""Python files that come with a model: copied with it, never imported or run."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import CheckpointError
from safemerge.weights.checkpoint import CONFIG_FILE, Checkpoint, read_json
from safemerge.weights.settings import unread_reason

_CONFIGS = "*config.json"
_MODULE = re.compile(r"[A-Za-z_]\w*")


class CustomCode(NamedTuple):
    """The code that a model's configs name in ``auto_map``."""

    files: tuple[Path, ...] = ()
    """Files in the model's folder: those named, and what they import relatively; sorted."""
    missing: tuple[str, ...] = ()
    """Names of files that must be there and are not, sorted."""
    elsewhere: tuple[str, ...] = ()
    """Hub repositories that code is taken from, sorted."""


def custom_code(checkpoint: Checkpoint) -> CustomCode:
    """Return the custom code of a model: of config.json, its tokenizer and its processor.

    ``auto_map`` names a class as ``module.Class``, in a file beside the config, or as
    ``repository--module.Class``. Files are read for their relative imports, as transformers
    reads them before it copies them, and never run.

    Args:
        checkpoint: The model as opened; its folder is looked at.

    Raises:
        CheckpointError: If a name is none of a class in a file of the folder, a file cannot be
            read, or one that config.json needs is missing and transformers has no code of its
            own for the model.
    """
    folder = checkpoint.folder
    files: set[Path] = set()
    missing: set[str] = set()
    elsewhere: set[str] = set()
    for config in sorted(folder.glob(_CONFIGS)):
        if b"auto_map" not in config.read_bytes():
            continue
        document = checkpoint.config if config.name == CONFIG_FILE else read_json(config)
        lacking: set[str] = set()
        for reference in _references(document.get("auto_map")):
            repository, _, name = reference.rpartition("--")
            module, dot, kind = name.partition(".")
            if repository:
                elsewhere.add(repository)
            elif dot and _MODULE.fullmatch(module) and _MODULE.fullmatch(kind):
                _follow(folder / f"{module}.py", files, lacking)
            else:
                raise CheckpointError(
                    f"{config}, auto_map: must name classes as module.Class, in a file of the "
                    f"folder; got {reference!r}. Correct it."
                )
        if lacking and config.name == CONFIG_FILE and unread_reason(document) is not None:
            raise CheckpointError(
                f"{config}, auto_map: its code must be beside it, for transformers has none for "
                f"model_type {document.get('model_type')!r}; got no {', '.join(sorted(lacking))}. "
                f"Copy or download it."
            )
        missing |= lacking
    return CustomCode(tuple(sorted(files)), tuple(sorted(missing)), tuple(sorted(elsewhere)))


def code_notices(code: CustomCode) -> tuple[str, ...]:
    """Return a sentence for each thing that a user must know of a model's custom code."""
    found = []
    if code.files:
        names = ", ".join(file.name for file in code.files)
        found.append(f"the base's custom code is copied and not run: {names}")
    if code.missing:
        found.append(
            f"the base's auto_map names code that is not there ({', '.join(code.missing)}); "
            f"transformers' own is used"
        )
    if code.elsewhere:
        found.append(
            f"the base's auto_map takes code from the hub ({', '.join(code.elsewhere)}), which is "
            f"not copied"
        )
    return tuple(found)


def without_missing_code(config: Mapping[str, Any], code: CustomCode) -> dict[str, Any]:
    """Return a config without ``auto_map`` where code that it may name is missing."""
    return {key: value for key, value in config.items() if key != "auto_map" or not code.missing}


def _references(auto_map: object) -> Iterator[str]:
    entries = auto_map.values() if isinstance(auto_map, dict) else ()
    for entry in entries:
        for reference in entry if isinstance(entry, list) else [entry]:
            if isinstance(reference, str):
                yield reference


def _follow(file: Path, files: set[Path], missing: set[str]) -> None:
    """Add a file and those that it imports relatively, to the last."""
    from transformers.dynamic_module_utils import get_relative_imports

    pending = [file]
    while pending:
        found = pending.pop()
        if found in files:
            continue
        if not found.is_file():
            missing.add(found.name)
            continue
        files.add(found)
        try:
            pending += [file.parent / f"{module}.py" for module in get_relative_imports(found)]
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"{found}: custom code must be readable text; got: {error}. Copy it again."
            ) from error
