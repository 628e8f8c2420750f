"""Whose tokenizer and chat template a merge is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from safemerge.config.base import StrictModel
from safemerge.config.checkpoint import Name, Vocabulary
from safemerge.config.problems import did_you_mean


class TemplateText(StrictModel):
    """A chat template written out."""

    text: str = Field(min_length=1)
    """Jinja, as transformers reads it from chat_template.jinja."""


class TokenizerChoice(StrictModel):
    """Models whose tokenizer and chat template the merge is given: on disk and while scored."""

    from_: Name | None = Field(default=None, alias="from")
    """Base or expert whose tokenizer files are copied, end token and special tokens among them;
    the base if left out. With ``vocabulary: refuse`` its ids must be the base's; with
    ``vocabulary: tokenizer`` rows of embeddings and output head are put into its order."""
    chat_template: Name | TemplateText | None = None
    """Base or expert whose chat template is taken, or the template itself as ``{text: ...}``; that
    of the tokenizer if left out."""

    @property
    def is_default(self) -> bool:
        """Whether tokenizer and template are the base's."""
        return self.from_ is None and self.chat_template is None

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
        for key, value in (("from", self.from_), ("chat_template", self.chat_template)):
            if isinstance(value, str) and value not in names:
                yield (
                    f"tokenizer.{key}: names an unknown model; got {value!r}. "
                    f"{did_you_mean(value, names)}"
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
