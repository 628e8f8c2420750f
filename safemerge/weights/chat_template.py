"""Chat templates as a checkpoint's folder has them, read without transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safemerge.errors import CheckpointError
from safemerge.weights.tokenizer_files import CONFIG_FILE, read_file

TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"
TEMPLATE_FOLDER = "additional_chat_templates"
DEFAULT = "default"

TEMPLATE_FILES = (TEMPLATE_FILE, OLD_TEMPLATE_FILE, f"{TEMPLATE_FOLDER}/*.jinja")
"""Files of templates, as globs; tokenizer_config.json may hold some as well."""


def read_chat_templates(folder: Path) -> dict[str, str]:
    """Return a folder's chat templates, as transformers finds them.

    Files come before ``chat_template`` in tokenizer_config.json, which is one template or a list
    of named ones; chat_template.json, which processors read, counts where there is no other.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Jinja text by name; the usual one is ``default``. Empty if there is none.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    found = {}
    for path in (folder / TEMPLATE_FILE, *sorted((folder / TEMPLATE_FOLDER).glob("*.jinja"))):
        if path.is_file():
            name = DEFAULT if path.name == TEMPLATE_FILE else path.stem
            found[name] = _text(path)
    configured = _named(folder / CONFIG_FILE) if not found else {}
    return found or configured or _named(folder / OLD_TEMPLATE_FILE)


def put_chat_templates(folder: Path, templates: Mapping[str, str]) -> None:
    """Make these templates the only ones of a folder, in place.

    Args:
        folder: Folder with tokenizer files.
        templates: Jinja text by name, as `read_chat_templates` returns it; empty for none.
    """
    for pattern in TEMPLATE_FILES:
        for path in folder.glob(pattern):
            path.unlink()
    config = read_file(folder / CONFIG_FILE)
    if config.pop("chat_template", None) is not None:
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    for name, text in templates.items():
        path = folder / TEMPLATE_FILE
        if name != DEFAULT:
            path = folder / TEMPLATE_FOLDER / f"{name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _named(path: Path) -> dict[str, str]:
    given: Any = read_file(path).get("chat_template")
    if given is None:
        return {}
    if isinstance(given, str):
        return {DEFAULT: given}
    try:
        return {str(item["name"]): str(item["template"]) for item in given}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: chat_template must be text, or a list of name and template; got "
            f"{type(given).__name__}. Save the tokenizer again."
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: must be text in UTF-8; got: {error}. Save it again."
        ) from error
