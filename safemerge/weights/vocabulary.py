"""Compare tokenizers by content: the same token must have the same id in every model."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from safemerge.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
_NUM_EXAMPLES = 3


class Tokens(NamedTuple):
    """What a tokenizer.json says of tokens."""

    ids: dict[str, int]
    """Id by token, added tokens included."""
    added: dict[str, dict[str, Any]]
    """Entries of ``added_tokens`` by token, in the order of their ids."""


def read_tokens(folder: Path) -> Tokens | None:
    """Return the tokens of a folder's tokenizer.json.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Ids and added tokens, or None if the folder has no tokenizer.json.

    Raises:
        CheckpointError: If tokenizer.json cannot be read or has no vocabulary.
    """
    path = folder / TOKENIZER_FILE
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        stored = document["model"]["vocab"]
        if isinstance(stored, dict):
            ids = {str(token): int(index) for token, index in stored.items()}
        else:
            ids = {str(entry[0]): index for index, entry in enumerate(stored)}
        entries = sorted(document.get("added_tokens") or [], key=lambda item: int(item["id"]))
        added = {str(item["content"]): dict(item) for item in entries}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{path}: must be a tokenizers file with a vocabulary; got: {error!r}. "
            f"Save the tokenizer again."
        ) from error
    ids.update({token: int(item["id"]) for token, item in added.items()})
    return Tokens(ids, added)


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Return token to id from a folder's tokenizer.json, added tokens included.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Id by token, or None if the folder has no tokenizer.json.

    Raises:
        CheckpointError: If tokenizer.json cannot be read or has no vocabulary.
    """
    found = read_tokens(folder)
    return None if found is None else found.ids


def vocabulary_difference(base: Path, expert: Path) -> list[str]:
    """Return up to three differences of two folders' vocabularies; empty if they agree.

    A folder without a tokenizer agrees with any. Files equal byte for byte are not parsed.
    Without tokenizer.json on both sides, tokenizer.model (SentencePiece) is compared by bytes.

    Args:
        base: The base's folder.
        expert: The expert's folder.

    Returns:
        Texts such as ``token '<pad>': base 2, expert none``.

    Raises:
        CheckpointError: If a tokenizer.json cannot be read.
    """
    pairs = {
        name: (base / name, expert / name)
        for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE)
        if (base / name).is_file() and (expert / name).is_file()
    }
    if not pairs or all(_same_bytes(*pair) for pair in pairs.values()):
        return []
    if TOKENIZER_FILE not in pairs:
        return [f"{SENTENCEPIECE_FILE} differs in content"]
    base_ids, expert_ids = vocabulary(base) or {}, vocabulary(expert) or {}
    different = sorted(
        token
        for token in base_ids.keys() | expert_ids.keys()
        if base_ids.get(token) != expert_ids.get(token)
    )
    examples = [
        f"token {token!r}: base {base_ids.get(token, 'none')}, "
        f"expert {expert_ids.get(token, 'none')}"
        for token in different[:_NUM_EXAMPLES]
    ]
    if len(different) > _NUM_EXAMPLES:
        examples[-1] += f" (of {len(different)} tokens)"
    return examples


def _same_bytes(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    return _digest(first) == _digest(second)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
