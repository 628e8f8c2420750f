"""Tokenizer files of a checkpoint that gets tokens added."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safemerge.errors import CheckpointError
from safemerge.weights.tokenizer_files import (
    ADDED_FILE,
    CONFIG_FILE,
    TOKENIZER_FILE,
    load_tokenizer,
    read_file,
)
from safemerge.weights.vocabulary import vocabulary


def add_tokens(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add tokens to the tokenizer files of a folder, in place.

    tokenizer.json gets the entries; of ``added_tokens_decoder`` in tokenizer_config.json and of
    added_tokens.json, which slow tokenizers read, those that are there get them too. A
    vocabulary in other files is first saved as transformers does, as tokenizer.json; it stays
    beside it, with added_tokens.json. Which tokens begin, end and pad a text stays as it was.

    Args:
        folder: Folder with the files; they are overwritten.
        entries: Entries of ``added_tokens`` as tokenizer.json has them, with ids that follow
            those of the file; empty changes nothing.

    Raises:
        CheckpointError: If transformers cannot load the tokenizer, or gives a token another id.
    """
    if not entries:
        return
    path, added = folder / TOKENIZER_FILE, folder / ADDED_FILE
    if not path.is_file():
        load_tokenizer(folder).save_pretrained(folder)
        if not added.is_file():
            _write(added, {})
    document = read_file(path)
    document["added_tokens"] = [*(document.get("added_tokens") or []), *entries]
    _write(path, document)
    config = folder / CONFIG_FILE
    document = read_file(config)
    if isinstance(document.get("added_tokens_decoder"), dict):
        document["added_tokens_decoder"].update(
            {
                str(entry["id"]): {key: value for key, value in entry.items() if key != "id"}
                for entry in entries
            }
        )
        _write(config, document)
    if added.is_file():
        ids = {entry["content"]: entry["id"] for entry in entries}
        _write(added, {**read_file(added), **ids})
    _check_ids(path, entries)


def _check_ids(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    ids = vocabulary(path.parent) or {}
    for entry in entries:
        found = ids.get(entry["content"])
        if found != entry["id"]:
            raise CheckpointError(
                f"{path}, token {entry['content']!r}: must get the id of its row, "
                f"{entry['id']}; got {found} from transformers, for the ids of the base's tokens "
                f"have gaps. Use vocabulary: base."
            )


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
