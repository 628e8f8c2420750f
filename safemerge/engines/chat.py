"""Prompts in the model's own chat format, tokenised once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safemerge.config.suite import Classification
from safemerge.data.suite import LoadedSuite
from safemerge.engines.engine import Continuation, TokenizedPrompt
from safemerge.errors import CheckpointError, DataError


class ChatFormat:
    """A tokenizer with its chat template.

    Args:
        folder: Checkpoint folder that holds the tokenizer.

    Raises:
        CheckpointError: If there is no tokenizer, or it has no chat template that takes a user's
            message.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoTokenizer

        self._folder = folder
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: must hold a tokenizer; got: {str(error).splitlines()[0]}. "
                "Save the tokenizer beside the weights."
            ) from None
        if not getattr(self.tokenizer, "chat_template", None):
            raise CheckpointError(
                f"{folder}: the tokenizer must have a chat template; got none. "
                "Add chat_template.jinja to the base model's folder."
            )
        self.prompt_ids("a")

    def prompt_ids(
        self, prompt: str, *, system: str | None = None, where: str = "prompt"
    ) -> list[int]:
        """Return the token ids of a user message, ready for the assistant's turn.

        Args:
            prompt: The user's message.
            system: The system message; the template's own default if None.
            where: Place for messages.

        Raises:
            DataError: If the chat template refuses or drops the system message.
        """
        user = {"role": "user", "content": prompt}
        if system is None:
            text = self._render([user], ready=True)
        else:
            text = self._render_with_system(system, user, where)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render_with_system(self, system: str, user: dict[str, str], where: str) -> str:
        try:
            text = self._render([{"role": "system", "content": system}, user], ready=True)
        except CheckpointError as error:
            got = str(error.__cause__)
        else:
            if system.strip() in text:
                return text
            got = "a prompt without it"
        raise DataError(
            f"{where}: the chat template of {self._folder} must take a system message; "
            f"got: {got}. Drop `system`, or put its text into the prompt."
        )

    def _render(
        self, messages: Sequence[dict[str, str]], *, ready: bool = False, goes_on: bool = False
    ) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=ready,
                    continue_final_message=goes_on,
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise CheckpointError(
                f"{self._folder}: the chat template must take the turns {roles}; got: {error}. "
                "Mend chat_template.jinja in the base model's folder."
            ) from error

    def conversation(
        self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return messages as one text.

        Args:
            messages: Each with ``role`` and ``content``.
            add_generation_prompt: Whether the assistant's turn is opened; if not, the last
                message is one of its own that goes on.

        Raises:
            CheckpointError: If the chat template refuses a message.
        """
        return self._render(
            messages, ready=add_generation_prompt, goes_on=not add_generation_prompt
        )

    def end_of_turn_id(self) -> int:
        """Return the token that ends the assistant's turn: the template's own, else EOS."""
        probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        text = self._render(probe)
        ids = self.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        if ids and ids[-1] in special:
            return int(ids[-1])
        return int(self.tokenizer.eos_token_id)

    def stop_ids(self, stop: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of those stop texts that are single special tokens.

        Answers are decoded without special tokens, so that no text of theirs shows such a one.
        """
        known = zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        special = {str(text): int(token) for text, token in known}
        for token, told in self.tokenizer.added_tokens_decoder.items():
            if told.special:
                special[str(told.content)] = int(token)
        return tuple(sorted({special[text] for text in stop if text in special}))

    def label_ids(self, labels: Sequence[str], *, where: str) -> tuple[int, ...]:
        """Return each label's first token.

        Raises:
            DataError: If a label is empty, or two labels begin with the same token.
        """
        ids = []
        for label in labels:
            tokens = self.tokenizer(label, add_special_tokens=False)["input_ids"]
            if not tokens:
                raise DataError(
                    f"{where}: a label must have at least one token; got {label!r}. Rename it."
                )
            ids.append(int(tokens[0]))
        for index, token in enumerate(ids):
            if token in ids[:index]:
                raise DataError(
                    f"{where}: labels must differ in their first token; got "
                    f"{labels[ids.index(token)]!r} and {labels[index]!r}. Rename one."
                )
        for index, token in enumerate(ids):
            text = str(self.tokenizer.decode([token])).strip().casefold()
            others = [other for other in labels if other != labels[index]]
            begun = [other for other in others if text and other.casefold().startswith(text)]
            if not text or not labels[index].casefold().startswith(text):
                raise DataError(
                    f"{where}: a label's first token must be whole text; got {text!r} for "
                    f"{labels[index]!r}. Rename the label."
                )
            if begun:
                raise DataError(
                    f"{where}: labels must differ in their first token; got {text!r} of "
                    f"{labels[index]!r}, which begins {begun[0]!r} too. Rename one."
                )
        return tuple(ids)

    def tokenize(self, suite: LoadedSuite, *, max_model_len: int) -> list[TokenizedPrompt]:
        """Tokenise a suite's prompts.

        Args:
            suite: What is asked.
            max_model_len: The engine's context, in tokens.

        Raises:
            DataError: If a prompt and its answer do not fit the context, the chat template
                refuses a system message, or labels cannot be told apart by their first token.
        """
        where = f"suite '{suite.name}', {suite.split}"
        max_tokens = suite.task.max_tokens
        allowed = (
            self.label_ids(suite.task.labels, where=where)
            if isinstance(suite.task, Classification)
            else None
        )
        prompts = []
        for sample in suite.samples:
            ids = self.prompt_ids(sample.prompt, system=sample.system, where=where)
            if len(ids) + max_tokens > max_model_len:
                raise DataError(
                    f"{where}: prompt and answer must fit {max_model_len} tokens; got "
                    f"{len(ids)} + {max_tokens} for {sample.sample_id}. "
                    "Raise evaluator.max_model_len or shorten the prompt."
                )
            prompts.append(TokenizedPrompt(sample.sample_id, tuple(ids), max_tokens, allowed))
        return prompts

    def continuations(self, suite: LoadedSuite, *, max_model_len: int) -> list[Continuation]:
        """Tokenise a choice suite: each sample's endings as the assistant's answer, in order.

        Args:
            suite: What is asked.
            max_model_len: The engine's context, in tokens.

        Raises:
            DataError: If a prompt and its ending do not fit the context, or the chat template
                refuses a system message.
        """
        where = f"suite '{suite.name}', {suite.split}"
        found = []
        for sample in suite.samples:
            context = tuple(self.prompt_ids(sample.prompt, system=sample.system, where=where))
            for ending in sample.endings:
                ids = tuple(self.tokenizer(ending, add_special_tokens=False)["input_ids"])
                if len(context) + len(ids) >= max_model_len:
                    raise DataError(
                        f"{where}: prompt and ending must be shorter than {max_model_len} tokens; "
                        f"got {len(context)} + {len(ids)} for {sample.sample_id}. "
                        "Raise evaluator.max_model_len or shorten the prompt."
                    )
                found.append(Continuation(sample.sample_id, context, ids))
        return found
