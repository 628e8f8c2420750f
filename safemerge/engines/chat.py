"""Prompts in the model's own chat format, tokenised once."""

from __future__ import annotations

import copy
import datetime
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from safemerge.config.chat import DEFAULT_DATE, Scalar
from safemerge.config.suite import Classification
from safemerge.data.suite import LoadedSuite
from safemerge.engines.answer_end import text_behind, turn_end
from safemerge.engines.engine import Continuation, TokenizedPrompt
from safemerge.errors import CheckpointError, ConfigError, DataError

PROBE = 'Why does "A<b> & c\'s" hold?\n  Zwölf {{ 海 }} or 7 %'
"""A user's text that a template must show, case aside; no template has it of its own."""


class ChatFormat:
    """A tokenizer with its chat template, and what the template is given beside the messages.

    Nothing in a prompt hangs on the clock: a template that reads the date gets the ``date`` of
    `arguments`.

    Args:
        folder: Checkpoint folder that holds the tokenizer.
        arguments: Template arguments by name; see `safemerge.config.chat.ChatArguments`.

    Raises:
        CheckpointError: If there is no tokenizer, or it has no chat template that shows a user's
            message as it is and takes an assistant's behind it.
        ConfigError: If the template reads no argument of that name.
    """

    def __init__(self, folder: str | Path, arguments: Mapping[str, Scalar] | None = None) -> None:
        from transformers import AutoTokenizer

        self._folder = folder
        self.arguments: dict[str, Scalar] = dict(arguments or {})
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False
            )
        except Exception as error:  # noqa: BLE001 - a border: any file may be broken in any way
            raise CheckpointError(
                f"{folder}: must hold a tokenizer; got: {_first_line(error)}. "
                "Save the tokenizer beside the weights."
            ) from None
        if not isinstance(self.tokenizer.model_max_length, int | float):
            raise CheckpointError(
                f"{folder}: tokenizer_config.json: model_max_length must be a number; got "
                f"{self.tokenizer.model_max_length!r}. Correct the file."
            )
        if not getattr(self.tokenizer, "chat_template", None):
            raise CheckpointError(
                f"{folder}: the tokenizer must have a chat template; got none. "
                "Add chat_template.jinja to the base model's folder."
            )
        self._probe()

    def with_arguments(self, arguments: Mapping[str, Scalar]) -> ChatFormat:
        """Return the format with more template arguments, which come before its own.

        Raises:
            CheckpointError, ConfigError: As the constructor does.
        """
        if not arguments:
            return self
        other = copy.copy(self)
        other.__dict__.pop("_ends_turn", None)
        other.arguments = {**self.arguments, **arguments}
        other._probe()
        return other

    def reads(self, argument: str) -> bool:
        """Tell whether the template names an argument."""
        template = self.tokenizer.chat_template
        texts = template.values() if isinstance(template, dict) else [template]
        return argument == "date" or any(argument in str(text) for text in texts)

    def _probe(self) -> None:
        unread = [name for name in self.arguments if not self.reads(name)]
        if unread:
            raise ConfigError(
                f"chat.{unread[0]}: must be an argument that the chat template of {self._folder} "
                "reads; got one that it does not name. Check the name, or remove it."
            )
        text = self._render([{"role": "user", "content": PROBE}], ready=True)
        if text_behind(PROBE, text) is None:
            got = "another text" if text.strip() else "an empty one"
            raise CheckpointError(
                f"{self._folder}: the chat template must show a user's text as it is; got {got}. "
                "Correct chat_template.jinja in the base model's folder: roles are system, user "
                "and assistant, and content is text."
            )
        self.end_of_turn_id()

    def prompt_ids(
        self, prompt: str, *, system: str | None = None, where: str = "prompt"
    ) -> list[int]:
        """Return the token ids of a user message, ready for the assistant's turn.

        Args:
            prompt: The user's message.
            system: The system message; the template's own default if None.
            where: Place for messages.

        Raises:
            DataError: If the chat template refuses or drops the system message, or changes the
                user's.
        """
        user = {"role": "user", "content": prompt}
        if system is None:
            text = self._render([user], ready=True)
        else:
            text = self._render_with_system(system, user, where)
        if text_behind(prompt, text) is None:
            raise DataError(
                f"{where}: the chat template of {self._folder} must show a prompt as it is; got "
                f"one that it changes or drops: {prompt.strip()[:60]!r}. Drop the row, or correct "
                "chat_template.jinja."
            )
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render_with_system(self, system: str, user: dict[str, str], where: str) -> str:
        try:
            text = self._render([{"role": "system", "content": system}, user], ready=True)
        except CheckpointError as error:
            got = _first_line(error.__cause__ or error)
        else:
            if text_behind(system, text) is not None:
                return text
            got = "a prompt without it"
        raise DataError(
            f"{where}: the chat template of {self._folder} must take a system message; "
            f"got: {got}. Drop `system`, or put its text into the prompt."
        )

    def _render(
        self, messages: Sequence[dict[str, str]], *, ready: bool = False, goes_on: bool = False
    ) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=ready,
                    continue_final_message=goes_on,
                    **dated(self.arguments),
                )
            )
        except Exception as error:
            # A border: a template is somebody else's program, and may raise anything.
            roles = ", ".join(message["role"] for message in messages)
            raise CheckpointError(
                f"{self._folder}: the chat template must take the turns {roles}; got: "
                f"{_first_line(error)}. Correct chat_template.jinja in the base model's folder."
            ) from error

    def conversation(
        self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return messages as one text.

        Args:
            messages: Each with ``role`` and ``content``.
            add_generation_prompt: Whether the assistant's turn is opened; if not, the last
                message is the assistant's and is continued.

        Raises:
            CheckpointError: If the chat template refuses a message, or drops one.
        """
        text = self._render(
            messages, ready=add_generation_prompt, goes_on=not add_generation_prompt
        )
        for message in messages:
            shown = text_behind(message["content"], text) is not None
            if message["role"] != "assistant" and not shown:
                raise CheckpointError(
                    f"{self._folder}: the chat template must show every message as it is; got a "
                    f"text without the {message['role']}'s. Correct chat_template.jinja in the "
                    "base model's folder."
                )
        return text

    def opens_thinking(self, *, where: str) -> bool:
        """Tell whether prompts end inside an open ``<think>``, so that answers begin in it.

        Args:
            where: Place for messages.

        Raises:
            ConfigError: If answers would not show where thoughts begin and end.
        """
        hidden = [
            text
            for text in ("<think>", "</think>")
            if self.stop_ids([text])  # a special token, which answers are decoded without
        ]
        if hidden:
            raise ConfigError(
                f"{where}.strip_thinking: {hidden[0]} must be text of an answer; got a tokenizer "
                f"in {self._folder} that has it as a special token, which answers do not show. "
                "Mark it as not special in the tokenizer, or turn thinking off."
            )
        text = self._render([{"role": "user", "content": PROBE}], ready=True)
        opening = text_behind(PROBE, text) or ""
        return opening.rfind("<think>") > opening.rfind("</think>")

    def end_of_turn_id(self) -> int:
        """Return the token that ends the assistant's turn: the template's own, else EOS.

        The template's own is the first special token that it puts behind an answer.

        Raises:
            CheckpointError: If there is neither, or the template takes no answer.
        """
        return self._ends_turn

    @cached_property
    def _ends_turn(self) -> int:
        answer = f"An answer: {PROBE}"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
        found = turn_end(self.tokenizer, self._render(turns), answer)
        if found is not None:
            return found
        if self.tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"{self._folder}: an answer must have an end; got a chat template that puts no "
                "special token behind one, and a tokenizer without eos_token. Name eos_token in "
                "tokenizer_config.json."
            )
        return int(self.tokenizer.eos_token_id)

    def stop_ids(self, stop: Sequence[str]) -> tuple[int, ...]:
        """Return the ids of those stop texts that are single special tokens.

        Answers are decoded without special tokens, so that no text of theirs shows such a one.
        """
        known = zip(self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids, strict=True)
        special = {str(text): int(token) for text, token in known}
        for token, shown in self.tokenizer.added_tokens_decoder.items():
            if shown.special:
                special[str(shown.content)] = int(token)
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
                refuses a system message, or labels do not differ in their first token.
        """
        where = f"suite '{suite.name}', {suite.split}"
        chat = self.with_arguments(suite.chat)
        max_tokens = suite.task.max_tokens
        allowed = (
            self.label_ids(suite.task.labels, where=where)
            if isinstance(suite.task, Classification)
            else None
        )
        prompts = []
        for sample in suite.samples:
            ids = chat.prompt_ids(sample.prompt, system=sample.system, where=where)
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
        chat = self.with_arguments(suite.chat)
        found = []
        for sample in suite.samples:
            context = tuple(chat.prompt_ids(sample.prompt, system=sample.system, where=where))
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


def dated(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return template arguments with their day in the forms that templates read it.

    Args:
        arguments: By name; ``date`` is `DEFAULT_DATE` if left out.
    """
    day = datetime.datetime.fromisoformat(str(arguments.get("date", DEFAULT_DATE)))
    # NOTE: without the first, transformers gives templates the clock's.
    return {"strftime_now": day.strftime, "date_string": f"{day:%d %b %Y}", **arguments}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
