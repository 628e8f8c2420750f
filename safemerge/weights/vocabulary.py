"""Compare tokenizers by content: the same token must have the same id in every model."""

from collections.abc import Mapping, Set
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import CheckpointError
from safemerge.weights.tokenizer_files import (
    TOKENIZER_FILE,
    added_ids,
    has_vocabulary,
    load_tokenizer,
    same_tokenizer_files,
    same_vocabulary_files,
    tokenizer_digest,
)

__all__ = ["TOKENIZER_FILE", "Tokens", "read_tokens", "vocabulary", "vocabulary_difference"]

_NUM_EXAMPLES = 3


class Tokens(NamedTuple):
    """What a tokenizer says of tokens."""

    ids: dict[str, int]
    """Id by token, added tokens included."""
    added: dict[str, dict[str, Any]]
    """Added tokens in the order of their ids, as entries of ``added_tokens`` in tokenizer.json."""
    special: dict[str, str]
    """Token by role, e.g. ``eos_token``; roles that no token has are left out."""


def read_tokens(folder: Path) -> Tokens | None:
    """Return the tokens of a folder's tokenizer as transformers loads it.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Ids and added tokens, or None if the folder has no vocabulary in any form.

    Raises:
        CheckpointError: If transformers cannot load the tokenizer.
    """
    return _read(folder, tokenizer_digest(folder)) if has_vocabulary(folder) else None


@lru_cache(maxsize=8)
def _read(folder: Path, _: str) -> Tokens:
    # NOTE: by digest too, so that files which change under a running process are read anew.
    tokenizer = load_tokenizer(folder)
    ids = {str(token): int(index) for token, index in tokenizer.get_vocab().items()}
    added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: int(item[0]))
    special = {str(role): str(token) for role, token in tokenizer.special_tokens_map.items()}
    return Tokens(
        ids, {str(token.content): _entry(int(index), token) for index, token in added}, special
    )


def _entry(index: int, token: Any) -> dict[str, Any]:
    return {
        "id": index,
        "content": str(token.content),
        "single_word": bool(token.single_word),
        "lstrip": bool(token.lstrip),
        "rstrip": bool(token.rstrip),
        "normalized": bool(token.normalized),
        "special": bool(token.special),
    }


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Return token to id from a folder's tokenizer, added tokens included.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Id by token, or None if the folder has no vocabulary in any form.

    Raises:
        CheckpointError: If transformers cannot load the tokenizer.
    """
    found = read_tokens(folder)
    return None if found is None else found.ids


def vocabulary_difference(base: Path, expert: Path, *, num_rows: int | None = None) -> list[str]:
    """Return up to three differences of two folders' vocabularies; empty if they agree.

    Tokens are compared as transformers loads them, whatever files they stand in. Equal files
    are not loaded. Where neither tokenizer can be loaded but both have the same vocabulary
    files, byte for byte, the tokens that other files add are compared. A folder without a
    vocabulary has the other's ids, but for the tokens that its own files add.

    Args:
        base: The base's folder.
        expert: The expert's folder.
        num_rows: Rows of the embeddings: a token whose id has none counts as absent. None for
            any number.

    Returns:
        Texts such as ``token '<pad>': base 2, expert none``.

    Raises:
        CheckpointError: If a tokenizer cannot be loaded.
    """
    if same_tokenizer_files(base, expert):
        return []
    own, other = added_ids(base), added_ids(expert)
    tokens: Set[str] = own.keys() | other.keys()
    if has_vocabulary(base) and has_vocabulary(expert):
        try:
            own, other = vocabulary(base) or {}, vocabulary(expert) or {}
            tokens = own.keys() | other.keys()
        except CheckpointError:
            if not same_vocabulary_files(base, expert):
                raise
    elif has_vocabulary(base) and other:
        own, tokens = vocabulary(base) or {}, other.keys()
    elif has_vocabulary(expert) and own:
        other, tokens = vocabulary(expert) or {}, own.keys()
    else:
        tokens = own.keys() & other.keys()
    return _differences(_with_row(own, num_rows), _with_row(other, num_rows), tokens)


def _with_row(ids: Mapping[str, int], num_rows: int | None) -> Mapping[str, int]:
    if num_rows is None:
        return ids
    return {token: index for token, index in ids.items() if index < num_rows}


def _differences(
    base_ids: Mapping[str, int], expert_ids: Mapping[str, int], tokens: Set[str]
) -> list[str]:
    different = sorted(token for token in tokens if base_ids.get(token) != expert_ids.get(token))
    examples = [
        f"token {token!r}: base {base_ids.get(token, 'none')}, "
        f"expert {expert_ids.get(token, 'none')}"
        for token in different[:_NUM_EXAMPLES]
    ]
    if len(different) > _NUM_EXAMPLES:
        examples[-1] += f" (of {len(different)} tokens)"
    return examples
