"""Whose tokenizer and chat template a merge is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name, Vocabulary
from safemerge.config.problems import did_you_mean


class TemplateText(StrictModel):
    """A chat template written out."""

    text: str = Field(min_length=1)
    """Jinja, as transformers reads it from chat_template.jinja."""


class TokenRow(StrictModel):
    """Where the row of one token is taken from, in embeddings and output head."""

    from_: Name | None = Field(default=None, alias="from")
    """Base or expert whose row it is; null for a row of zeros."""
    token: str | int | None = None
    """The token there, or the number of the row; the same token if left out."""
    force: bool = False
    """Give it to models that have the token too; else it is for those that lack it."""


class TokenizerChoice(StrictModel):
    """Models whose tokenizer and chat template the merge is given: on disk and while scored."""

    from_: Name | None = Field(default=None, alias="from")
    """Base or expert whose tokenizer files are copied, end token and special tokens among them;
    the base if left out. With ``vocabulary: refuse`` its ids must be the base's; with
    ``vocabulary: tokenizer`` rows of embeddings and output head are put into its order."""
    chat_template: Name | TemplateText | None = None
    """Base or expert whose chat template is taken, or the template itself as ``{text: ...}``; that
    of the tokenizer if left out."""
    tokens: dict[str, TokenRow] = Field(default_factory=dict, exclude_if=lambda rows: not rows)
    """Rows by token, in place of what `vocabulary` says; a token that the vocabulary lacks is
    added to it."""
    pad_to_multiple_of: int | None = Field(
        default=None, ge=1, le=65536, exclude_if=lambda given: given is None
    )
    """Give embeddings and output head one row for each token, and as many more as the next
    multiple needs, each the mean of the others; the model's number of rows if left out."""

    @property
    def is_default(self) -> bool:
        """Whether tokenizer and template are the base's."""
        return not (self.from_ or self.chat_template or self.rows)

    @property
    def rows(self) -> dict[str, Any]:
        """What rows it changes, in the order of added tokens; empty for none."""
        tokens = [[token, row.resolved()] for token, row in self.tokens.items()]
        given = {"tokens": tokens, "pad_to_multiple_of": self.pad_to_multiple_of}
        return {key: value for key, value in given.items() if value}

    def row_models(self) -> set[str]:
        """Return the names of the models that `tokens` takes rows from."""
        return {row.from_ for row in self.tokens.values() if row.from_ is not None}

    def owner(self, base: str) -> str:
        """Return the name of the model whose tokenizer is taken.

        Args:
            base: Name of the base.
        """
        return base if self.from_ is None else self.from_

    def problems(self, names: Sequence[str], vocabulary: Vocabulary) -> Iterator[str]:
        """Yield what is wrong with the choice beside the other fields of a recipe or a study.

        Args:
            names: The base's name, then the experts'.
            vocabulary: The field of that name.
        """
        rows = [(f"tokens.{token}.from", row.from_) for token, row in self.tokens.items()]
        named = (("from", self.from_), ("chat_template", self.chat_template), *rows)
        for key, value in named:
            if isinstance(value, str) and value not in names:
                yield (
                    f"tokenizer.{key}: names an unknown model; got {value!r}. "
                    f"{did_you_mean(value, names)}"
                )
        for token, row in self.tokens.items():
            if row.from_ is None and row.token is not None:
                yield f"tokenizer.tokens.{token}: a token needs the model in from. Add it."
        if self.rows and vocabulary == "refuse":
            yield (
                "tokenizer.tokens and tokenizer.pad_to_multiple_of: need rows by token; got "
                "vocabulary: refuse. Use vocabulary: base, union or tokenizer."
            )
        if vocabulary == "tokenizer" and self.from_ is None:
            yield (
                "vocabulary: tokenizer takes the vocabulary of the model in tokenizer.from; got "
                "none. Add it, or use vocabulary: base."
            )
        if vocabulary in ("base", "union") and self.owner(names[0]) != names[0]:
            yield (
                f"tokenizer.from: must be the base with vocabulary: {vocabulary}, which keeps the "
                f"base's ids; got {self.from_!r}. Use vocabulary: tokenizer for its ids, or "
                f"vocabulary: refuse if they are the base's."
            )
