"""Where an answer ends: the one set of tokens that engines, judges and training agree on.

An answer ends at the first of: the chat template's end of turn, the tokenizer's end of sequence,
and every end that a generation_config.json names (config.json, where there is none). Of a merge
those of the base count and those of every expert, for its answers may end as any of them does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.config.checkpoint import CheckpointRef
from safemerge.config.recipe import MergeRecipe
from safemerge.weights.checkpoint import read_json
from safemerge.weights.generation_config import named_ends
from safemerge.weights.tokenizer_files import load_tokenizer

if TYPE_CHECKING:
    from safemerge.engines.chat import ChatFormat

TOKENIZER_CONFIG = "tokenizer_config.json"


def answer_ends(models: MergeRecipe, chat: ChatFormat) -> tuple[int, ...]:
    """Return the tokens that end an answer of any merge of these models.

    Args:
        models: Resolved recipe over the models; folders that do not exist yet are left out.
        chat: The format that the prompts have.

    Returns:
        Ids in the format's vocabulary, ascending; at least one.

    Raises:
        CheckpointError: If a config cannot be read, or nothing says where an answer ends.
    """
    own = chat.tokenizer
    folders = [Path(str(ref.path)) for ref in models.checkpoints for ref in _plain(ref)]
    found = [chat.end_of_turn_id(), own.eos_token_id]
    vocabulary: Mapping[str, int] = own.get_vocab()
    for folder in folders:
        named = named_ends(folder)
        same_ids = models.vocabulary == "refuse"
        found += named if same_ids else _translated(folder, named, vocabulary)
        token = _end_token(folder)
        found.append(vocabulary.get(token) if token is not None else None)
    return sorted_ends(own, found)


def sorted_ends(tokenizer: Any, found: Iterable[int | None]) -> tuple[int, ...]:
    """Return the ids that a tokenizer knows, ascending, each once."""
    size = len(tokenizer)
    return tuple(sorted({int(one) for one in found if one is not None and 0 <= one < size}))


def text_behind(words: str, text: str) -> str | None:
    """Return what follows the last place where a rendered text has some words; None if nowhere.

    Case does not count: a template may write in capitals.
    """
    places = list(re.finditer(re.escape(words.strip()), text, re.IGNORECASE))
    return text[places[-1].end() :] if places else None


def turn_end(tokenizer: Any, text: str, answer: str) -> int | None:
    """Return the first special token behind an answer; None if there is none.

    Args:
        tokenizer: Of the model.
        text: A rendered conversation.
        answer: The assistant's words in it.
    """
    behind = text_behind(answer, text)
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"] if behind else []
    special, added = set(tokenizer.all_special_ids), tokenizer.added_tokens_decoder
    for token in ids:
        # NOTE: some vocabularies have blanks and line ends among their added tokens.
        if token in special or (token in added and str(added[token].content).strip()):
            return int(token)
    return None


def _plain(ref: CheckpointRef) -> Iterator[CheckpointRef]:
    ends = (ref,) if ref.between is None else ref.between.ends
    yield from (end for end in ends if end.path is not None and Path(end.path).is_dir())


def _end_token(folder: Path) -> str | None:
    """The end of sequence that a model's tokenizer names; an adapter's folder may have one."""
    path = folder / TOKENIZER_CONFIG
    token = read_json(path).get("eos_token") if path.is_file() else None
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _translated(folder: Path, ends: list[int], vocabulary: Mapping[str, int]) -> list[int | None]:
    """Ids of another vocabulary, token by token; None for a token that the base lacks."""
    if not ends or not (folder / TOKENIZER_CONFIG).is_file():
        return list(ends)
    tokenizer = load_tokenizer(folder)
    return [vocabulary.get(str(token)) for token in tokenizer.convert_ids_to_tokens(ends)]
