"""The files that a checkpoint's tokenizer stands in, and the tokenizer that they make."""

import hashlib
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safemerge.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
ADDED_FILE = "added_tokens.json"

VOCABULARY_FILES = (
    # fast, sentencepiece, tiktoken, Mistral's own, byte-pair and word-piece vocabularies
    TOKENIZER_FILE,
    "tokenizer.model*",
    "spiece.model",
    "spm*.model",
    "sentencepiece*.model",
    "tiktoken.model",
    "*.tiktoken",
    "tekken.json",
    "*vocab*.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
)
"""Files, as globs, that tokens and their ids come from."""

TOKENIZER_FILES = (*VOCABULARY_FILES, ADDED_FILE, CONFIG_FILE, "special_tokens_map.json")
"""The same, with those that add tokens and say what they are for."""

_SENTENCEPIECE_FILES = ("tokenizer.model*", "spiece.model", "spm*.model", "sentencepiece*.model")
_NO_IDS = frozenset(
    {
        "chat_template",
        "clean_up_tokenization_spaces",
        "model_max_length",
        "name_or_path",
        "padding_side",
        "processor_class",
        "transformers_version",
        "truncation_side",
    }
)
"""Keys of tokenizer_config.json that give no token an id."""


def found_files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files of a folder that any of several globs matches, sorted.

    Args:
        folder: A checkpoint's folder.
        patterns: Globs relative to the folder.
    """
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def has_vocabulary(folder: Path) -> bool:
    """Tell whether a folder has a file that tokens come from."""
    return bool(found_files(folder, VOCABULARY_FILES))


def tokenizer_digest(folder: Path) -> str:
    """Return a SHA-256 hex digest of a folder's tokenizer files, names and contents."""
    return _digest(_contents(folder, TOKENIZER_FILES))


def same_tokenizer_files(first: Path, second: Path) -> bool:
    """Tell whether two folders have the same tokenizer files, as far as ids depend on them."""
    return _without_texts(first) == _without_texts(second)


def same_vocabulary_files(first: Path, second: Path) -> bool:
    """Tell whether the files that two folders' tokens come from are equal byte for byte."""
    return _contents(first, VOCABULARY_FILES) == _contents(second, VOCABULARY_FILES)


def added_ids(folder: Path) -> dict[str, int]:
    """Return the ids that files beside the vocabulary give to tokens.

    Those of added_tokens.json and of ``added_tokens_decoder`` in tokenizer_config.json.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Id by token; empty without such files.

    Raises:
        CheckpointError: If a file is not what transformers writes there.
    """
    decoder = read_file(folder / CONFIG_FILE).get("added_tokens_decoder") or {}
    try:
        listed = {str(entry["content"]): int(index) for index, entry in decoder.items()}
        named = {str(token): int(index) for token, index in read_file(folder / ADDED_FILE).items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: {ADDED_FILE} must give an id by token, and added_tokens_decoder in "
            f"{CONFIG_FILE} a token by id; got: {error!r}. Save the tokenizer again."
        ) from error
    return {**named, **listed}


def read_file(path: Path) -> dict[str, Any]:
    """Return a JSON object of a tokenizer; empty if the file is missing.

    Raises:
        CheckpointError: If it is no JSON object.
    """
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: must be a JSON object; got: {error}. Save the tokenizer again."
        ) from error
    if not isinstance(document, dict):
        raise CheckpointError(
            f"{path}: must be a JSON object; got a {type(document).__name__}. Save the tokenizer "
            f"again."
        )
    return document


def load_tokenizer(folder: Path) -> Any:
    """Return a folder's tokenizer as transformers loads it; no code of the folder is run.

    A Mistral vocabulary (tekken.json) is taken in transformers' own form, in which a token has
    one name.

    Args:
        folder: A checkpoint's folder with a vocabulary.

    Returns:
        A transformers tokenizer.

    Raises:
        CheckpointError: If transformers cannot load it; names the files, and the package that
            is missing if one is.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, mistral_format=False
        )
    except Exception as error:
        # NOTE: the libraries behind transformers raise whatever they like, plain Exception too.
        files = ", ".join(file.name for file in found_files(folder, VOCABULARY_FILES))
        remedy = "Save the tokenizer again with transformers"
        if find_spec("sentencepiece") is None and found_files(folder, _SENTENCEPIECE_FILES):
            remedy = "Install sentencepiece, or save the tokenizer with transformers"
        got = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{folder}: must hold a tokenizer that transformers loads; got {files or 'no file'}: "
            f"{got}. {remedy}."
        ) from error


def _without_texts(folder: Path) -> dict[str, object]:
    contents: dict[str, object] = dict(_contents(folder, TOKENIZER_FILES))
    config = read_file(folder / CONFIG_FILE)
    contents[CONFIG_FILE] = {key: config[key] for key in config.keys() - _NO_IDS}
    return contents


def _contents(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    return dict(_file_digests(folder, patterns))


def _file_digests(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for file in found_files(folder, patterns):
        with file.open("rb") as stream:
            yield file.name, hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(contents: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
