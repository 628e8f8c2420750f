"""Tokenizer files of a checkpoint that gets tokens added."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safemerge.errors import CheckpointError
from safemerge.weights.checkpoint import read_json
from safemerge.weights.vocabulary import TOKENIZER_FILE

_CONFIG_FILE = "tokenizer_config.json"
_IDS_FILE = "added_tokens.json"


def add_tokens(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add tokens to the tokenizer files of a folder, in place.

    tokenizer.json gets the entries; of ``added_tokens_decoder`` in tokenizer_config.json and of
    added_tokens.json, which slow tokenizers read, those that are there get them too. Which
    tokens begin, end and pad a text stays as it was.

    Args:
        folder: Folder with the files; they are overwritten.
        entries: Entries of ``added_tokens`` as tokenizer.json has them, with ids that follow
            those of the file; empty changes nothing.

    Raises:
        CheckpointError: If the tokenizers library gives a token another id.
    """
    if not entries:
        return
    path = folder / TOKENIZER_FILE
    document = read_json(path)
    document["added_tokens"] = [*(document.get("added_tokens") or []), *entries]
    _write(path, document)
    _check_ids(path, entries)
    config = folder / _CONFIG_FILE
    if config.is_file():
        document = read_json(config)
        if isinstance(document.get("added_tokens_decoder"), dict):
            document["added_tokens_decoder"].update(
                {
                    str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
                    for entry in entries
                }
            )
            _write(config, document)
    if (folder / _IDS_FILE).is_file():
        ids = {entry["content"]: entry["id"] for entry in entries}
        _write(folder / _IDS_FILE, {**read_json(folder / _IDS_FILE), **ids})


def _check_ids(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    for entry in entries:
        found = tokenizer.token_to_id(entry["content"])
        if found != entry["id"]:
            raise CheckpointError(
                f"{path}, token {entry['content']!r}: must get the id of its row, "
                f"{entry['id']}; got {found} from the tokenizers library, for the ids of the "
                f"base's tokens have gaps. Use vocabulary: base."
            )


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
