"""The tokenizer and chat template that a merge has, on disk and while it is scored."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safemerge.cache import cache_dir
from safemerge.config.base import digest
from safemerge.config.recipe import MergeRecipe
from safemerge.config.tokenizer import TemplateText
from safemerge.errors import CheckpointMismatchError
from safemerge.merge.stream import in_one_vocabulary
from safemerge.weights.adapter import is_adapter, open_checkpoint
from safemerge.weights.chat_template import (
    DEFAULT,
    TEMPLATE_FILES,
    put_chat_templates,
    read_chat_templates,
)
from safemerge.weights.checkpoint import CONFIG_FILE, Checkpoint, read_json
from safemerge.weights.generation_config import GENERATION_FILE
from safemerge.weights.shared_vocabulary import VocabularyView
from safemerge.weights.tokenizer import add_tokens
from safemerge.weights.tokenizer_files import (
    TOKENIZER_FILES,
    found_files,
    has_vocabulary,
    load_tokenizer,
)

_FILES = (*TOKENIZER_FILES, *TEMPLATE_FILES)
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id")


def candidate_tokenizer(recipe: MergeRecipe) -> Path:
    """Return a folder with the tokenizer and chat template that a recipe's merge has.

    Args:
        recipe: Recipe, or `models_recipe`, whose checkpoints are given by path.

    Returns:
        The base's folder where they are the base's; else a folder in the cache, which also has
        the config and the generation config that the merge has.

    Raises:
        CheckpointMismatchError: If a named model has no tokenizer or no chat template, or the
            models cannot be shown in one vocabulary.
        CheckpointError: If a checkpoint or a tokenizer cannot be read.
        PreflightError: If the cache cannot be written.
    """
    base = Path(str(recipe.base.path))
    added = _added_tokens(recipe) if _adds_tokens(recipe) else ()
    if recipe.tokenizer.is_default and not added:
        return base
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=".tokenizer-") as made:
        folder = Path(made) / "tokenizer"
        folder.mkdir()
        copy_files(base, folder, (*_FILES, CONFIG_FILE, GENERATION_FILE))
        give_tokenizer(recipe, folder, added)
        kept = cache_dir() / "tokenizers" / _content_digest(folder)
        kept.parent.mkdir(exist_ok=True)
        # NOTE: another process may have put the same there meanwhile.
        if not kept.is_dir():
            try:
                os.rename(folder, kept)
            except OSError:
                if not kept.is_dir():
                    raise
    return kept


def tokenizer_models(recipe: MergeRecipe) -> set[str]:
    """Return the names of the models that `candidate_tokenizer` reads."""
    if _adds_tokens(recipe):
        return {ref.name for ref in recipe.checkpoints}
    template = recipe.tokenizer.chat_template
    named = {template} if isinstance(template, str) else set()
    return {recipe.base.name, recipe.tokenizer.owner(recipe.base.name), *named}


def give_tokenizer(
    recipe: MergeRecipe, folder: Path, added: tuple[dict[str, Any], ...] = ()
) -> None:
    """Put a recipe's tokenizer and chat template in the place of the base's.

    Another model's tokenizer comes with its generation config, and with the ids of its end,
    begin and padding tokens in config.json.

    Args:
        recipe: Recipe whose checkpoints are given by path.
        folder: Folder with the base's config, tokenizer and templates; changed in place.
        added: Entries of tokens that a union adds to the base's.

    Raises:
        CheckpointMismatchError: If a named model has no tokenizer or no chat template.
        CheckpointError: If a tokenizer or a template cannot be read.
    """
    where = f"recipe {recipe.digest[:4]}"
    folders = {ref.name: Path(str(ref.path)) for ref in recipe.checkpoints}
    owner = recipe.tokenizer.owner(recipe.base.name)
    if owner != recipe.base.name:
        if not has_vocabulary(folders[owner]):
            raise CheckpointMismatchError(
                f"{where}: tokenizer.from must name a model that has a tokenizer; got "
                f"'{owner}', whose folder {folders[owner]} has no file of one. Name another."
            )
        for file in found_files(folder, _FILES):
            file.unlink()
        copy_files(folders[owner], folder, (*_FILES, GENERATION_FILE))
        _put_special_ids(folder, _special_ids(folders[owner]))
    template = recipe.tokenizer.chat_template
    if isinstance(template, TemplateText):
        put_chat_templates(folder, {DEFAULT: template.text})
    elif template is not None and template != owner:
        templates = read_chat_templates(folders[template])
        if not templates:
            raise CheckpointMismatchError(
                f"{where}: tokenizer.chat_template must name a model that has a chat template; "
                f"got '{template}', whose folder {folders[template]} has none. Name another."
            )
        put_chat_templates(folder, templates)
    add_tokens(folder, added)


def added_tokens(base: Checkpoint) -> tuple[dict[str, Any], ...]:
    """Return the entries that a union adds to the base's tokenizer.

    Args:
        base: The base as `in_one_vocabulary` shows it.
    """
    return base.added if isinstance(base, VocabularyView) else ()


def copy_files(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    """Copy the files of a folder that any of several globs matches, in sub-folders too.

    Args:
        source: Folder to copy from.
        folder: Folder to copy to; a file there is overwritten.
        patterns: Globs relative to `source`.
    """
    for file in found_files(source, patterns):
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)


def _adds_tokens(recipe: MergeRecipe) -> bool:
    """Tell whether a recipe's vocabulary may have tokens that its tokenizer lacks."""
    return recipe.vocabulary == "union" or bool(recipe.tokenizer.tokens)


def _added_tokens(recipe: MergeRecipe) -> tuple[dict[str, Any], ...]:
    base = open_checkpoint(str(recipe.base.path))
    opened: Mapping[str, Checkpoint] = {
        recipe.base.name: base,
        **{ref.name: open_checkpoint(str(ref.path), base) for ref in recipe.experts},
    }
    return added_tokens(in_one_vocabulary(recipe, opened)[recipe.base.name])


def _special_ids(folder: Path) -> dict[str, Any]:
    """Ids by role: of the model's config, or of an adapter's tokenizer."""
    if is_adapter(folder):
        tokenizer = load_tokenizer(folder)
        ids = {role: getattr(tokenizer, role) for role in _ROLES}
    else:
        config = read_json(folder / CONFIG_FILE)
        nested = config.get("text_config")
        text = nested if isinstance(nested, dict) else {}
        ids = {role: config.get(role, text.get(role)) for role in _ROLES}
    return {role: index for role, index in ids.items() if index is not None}


def _put_special_ids(folder: Path, ids: Mapping[str, Any]) -> None:
    path = folder / CONFIG_FILE
    config = read_json(path)
    nested = config.get("text_config")
    if isinstance(nested, dict):
        config["text_config"] = {**nested, **{role: ids[role] for role in ids if role in nested}}
    config.update({role: ids[role] for role in ids if role in config or nested is None})
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _content_digest(folder: Path) -> str:
    files = found_files(folder, ("**/*",))
    return digest(
        {
            str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in files
        }
    )
