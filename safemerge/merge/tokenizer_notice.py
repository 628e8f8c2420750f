"""What must be known of tokenizers and chat templates of models that can be merged."""

from collections.abc import Iterator
from pathlib import Path

from safemerge.config.recipe import MergeRecipe
from safemerge.config.tokenizer import TemplateText
from safemerge.errors import CheckpointError
from safemerge.weights.adapter import is_adapter
from safemerge.weights.chat_template import DEFAULT, read_chat_templates
from safemerge.weights.generation_config import named_ends
from safemerge.weights.tokenizer_files import (
    has_vocabulary,
    same_tokenizer_files,
    same_vocabulary_files,
)
from safemerge.weights.vocabulary import read_tokens

_ROLES = ("eos_token", "bos_token", "pad_token", "unk_token")


def tokenizer_notices(recipe: MergeRecipe) -> tuple[str, ...]:
    """Return a sentence for each thing of tokenizers that a user must know.

    Those are models without a tokenizer, whose ids are taken to be the others'; chat templates,
    special tokens (what ends, begins and pads a text) and ends of answers that differ from the
    merge's and that the recipe chooses nothing about; and what it chooses.

    Args:
        recipe: Recipe, or `models_recipe`, whose checkpoints are given by path; those between
            two checkpoints are left out.

    Raises:
        CheckpointError: If a tokenizer or a template cannot be read.
    """
    folders = {ref.name: Path(ref.path) for ref in recipe.checkpoints if ref.path is not None}
    if recipe.base.name not in folders:
        return ()
    return (
        *_missing(recipe, folders),
        *_chosen(recipe),
        *(_templates(recipe, folders) if recipe.tokenizer.chat_template is None else ()),
        *(_special_tokens(recipe, folders) if recipe.tokenizer.from_ is None else ()),
        *(_ends(recipe, folders) if recipe.tokenizer.from_ is None else ()),
    )


def _missing(recipe: MergeRecipe, folders: dict[str, Path]) -> Iterator[str]:
    having = [name for name, folder in folders.items() if has_vocabulary(folder)]
    if recipe.base.name not in having:
        if having:
            yield (
                f"the base has no tokenizer: its ids are taken to be those of '{having[0]}', and "
                f"the merge has none unless tokenizer.from names a model"
            )
        else:
            yield "no model has a tokenizer: ids are taken to be the same, and the merge has none"
        return
    for name, folder in folders.items():
        if name not in having and not is_adapter(folder):
            yield f"expert '{name}' has no tokenizer: its ids are taken to be the base's"


def _chosen(recipe: MergeRecipe) -> Iterator[str]:
    owner, template = recipe.tokenizer.from_, recipe.tokenizer.chat_template
    if owner not in (None, recipe.base.name):
        yield f"the merge has the tokenizer of '{owner}'"
    if isinstance(template, TemplateText):
        yield "the merge has the chat template that the recipe writes out"
    elif template is not None:
        yield f"the merge has the chat template of '{template}'"


def _templates(recipe: MergeRecipe, folders: dict[str, Path]) -> Iterator[str]:
    owner = recipe.tokenizer.owner(recipe.base.name)
    if owner not in folders:
        return
    own = read_chat_templates(folders[owner]).get(DEFAULT)
    for name, folder in folders.items():
        other = read_chat_templates(folder).get(DEFAULT)
        if name == owner or other is None or other == own:
            continue
        if own is None:
            yield (
                f"'{name}' has a chat template and '{owner}' none, so the merge has none; "
                f"'tokenizer: {{chat_template: {name}}}' gives it this one"
            )
        else:
            yield (
                f"'{name}' has another chat template than '{owner}', whose the merge has; "
                f"'tokenizer: {{chat_template: {name}}}' gives it this one"
            )


def _special_tokens(recipe: MergeRecipe, folders: dict[str, Path]) -> Iterator[str]:
    base = folders[recipe.base.name]
    order = "" if recipe.vocabulary == "refuse" else "vocabulary: tokenizer' with '"
    if not has_vocabulary(base):
        return
    for name, folder in folders.items():
        if not has_vocabulary(folder) or same_tokenizer_files(base, folder):
            continue
        try:
            own, other = read_tokens(base), read_tokens(folder)
        except CheckpointError:
            yield (
                f"special tokens of '{name}' were not compared with the base's, for transformers "
                f"cannot load their tokenizers"
            )
            continue
        if own is None or other is None:
            continue
        differences = [
            f"{role} {other.special[role]!r} (base {own.special.get(role, 'none')!r})"
            for role in _ROLES
            if other.special.get(role, own.special.get(role)) != own.special.get(role)
        ]
        if differences:
            yield (
                f"'{name}' has other special tokens than the base, whose the merge has: "
                f"{', '.join(differences)}; '{order}tokenizer: {{from: {name}}}' gives it these"
            )


def _ends(recipe: MergeRecipe, folders: dict[str, Path]) -> Iterator[str]:
    base = folders[recipe.base.name]
    own = set(named_ends(base))
    for name, folder in folders.items():
        more = [end for end in named_ends(folder) if end not in own]
        # In other vocabularies an id is another token; answers are ended by the token there.
        if not more or not has_vocabulary(base) or not same_vocabulary_files(base, folder):
            continue
        try:
            tokens = read_tokens(base)
        except CheckpointError:
            return  # said above
        assert tokens is not None, "it has a vocabulary"
        known = {index: token for token, index in tokens.ids.items()}
        known.pop(tokens.ids.get(tokens.special.get("eos_token", ""), -1), None)
        text = ", ".join(f"{known[end]!r} ({end})" for end in more if end in known)
        if text:
            yield (
                f"generation_config.json of '{name}' ends answers at {text} too, the base's does "
                f"not: scoring ends them there, the merge's own files will not; "
                f"'tokenizer: {{from: {name}}}' gives it these"
            )
