"""A word-level model small enough to train from scratch in a minute: an experiment's blank base.

``python -m safemerge.testing.word_model FOLDER FILE...`` writes a two-layer Llama with random
weights, whose vocabulary is the words of the data of training files. Fine-tuned from there with
``parameters: full`` it is a model of which many seeds can be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safemerge.config.alignment import AlignSpec
from safemerge.config.document import load_document, read_yaml
from safemerge.config.source import TrainingData
from safemerge.config.training import FinetuneSpec
from safemerge.data.rows import load_training_samples
from safemerge.errors import ConfigError, DataError, UserError
from safemerge.testing.pico import (
    END_OF_TEXT,
    END_OF_TURN,
    PAD,
    START_OF_TURN,
    chat_tokenizer,
    pico_base,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

UNKNOWN = "<|unknown|>"
"""Token of every word that is not in the vocabulary."""

_WORD = r" ?[\p{L}\p{N}']+| ?[^\s\p{L}\p{N}']|\s"
"""A word or a mark with the space before it, or a space or line end alone."""


def word_tokenizer(texts: Iterable[str], *, most: int = 4096) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer, lower case, with a ChatML template.

    A token is a word or a mark with the space before it, so that known text decodes to itself
    but for its case.

    Args:
        texts: What the vocabulary is counted in.
        most: Largest vocabulary; the most frequent words are kept, ties in the alphabet's order.

    Raises:
        DataError: If there are more special tokens than `most` allows.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers
    from tokenizers.pre_tokenizers import Split

    specials = [PAD, START_OF_TURN, END_OF_TURN, END_OF_TEXT, UNKNOWN]
    if most <= len(specials):
        raise DataError(
            f"word tokenizer: most must exceed {len(specials)}, the special tokens; got {most}."
        )
    split = Split(Regex(_WORD), "isolated")
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text.casefold()))
    # The template's own words, whatever the texts are.
    for word in ("user", "assistant", "system", "\n"):
        counts[word] += 10**9
    words = sorted(counts, key=lambda word: (-counts[word], word))[: most - len(specials)]
    vocabulary = {token: index for index, token in enumerate([*specials, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    return chat_tokenizer(tokenizer, specials, unk_token=UNKNOWN)


def word_base(out: Path | str, texts: Iterable[str], *, seed: int = 0, most: int = 4096) -> Path:
    """Write a two-layer Llama of width 64 with random weights and a word-level tokenizer.

    Args:
        out: Folder to write.
        texts: See `word_tokenizer`.
        seed: Seed of the weights.
        most: Largest vocabulary; 2500 words make 0.24 million parameters.

    Returns:
        The folder.

    Raises:
        DataError: See `word_tokenizer`.
    """
    return pico_base(out, seed=seed, tokenizer=word_tokenizer(texts, most=most))


def texts_of(files: Iterable[Path | str]) -> list[str]:
    """Return the prompts and answers of training files' data, harmful and poison rows among them.

    Args:
        files: Alignment or fine-tuning files.

    Raises:
        UserError: If a file or its data are wrong.
    """
    found = []
    for file in files:
        spec = _training_file(Path(file))
        for place, data in spec.training_sets.items():
            if not isinstance(data, TrainingData):
                continue  # held-out prompts, which are not trained on
            for sample in load_training_samples(data, where=f"{file}: {place}", seed=spec.seed):
                found += [sample.prompt, sample.response]
    return found


def _training_file(path: Path) -> AlignSpec | FinetuneSpec:
    kind = read_yaml(path).get("kind")
    model: type[Any] = {"align": AlignSpec, "finetune": FinetuneSpec}.get(str(kind), FinetuneSpec)
    spec: AlignSpec | FinetuneSpec = load_document(path, model)
    return spec.located(path.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a blank model for training files; return the exit status, 2 for wrong input."""
    parser = argparse.ArgumentParser(
        "python -m safemerge.testing.word_model",
        description="Write a blank word-level model whose vocabulary is that of training files.",
    )
    parser.add_argument("folder", type=Path, help="where the model goes; must be new or empty")
    parser.add_argument("files", type=Path, nargs="+", help="alignment and fine-tuning files")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument("--most", type=int, default=4096, help="largest vocabulary (default 4096)")
    options = parser.parse_args(arguments)
    try:
        if options.folder.exists() and any(options.folder.iterdir()):
            raise ConfigError(
                f"{options.folder}: must be new or empty; got a folder with files. Choose another."
            )
        word_base(options.folder, texts_of(options.files), seed=options.seed, most=options.most)
    except UserError as error:
        sys.stderr.write(f"safemerge: {error}\n")
        return 2
    sys.stdout.write(f"{options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
