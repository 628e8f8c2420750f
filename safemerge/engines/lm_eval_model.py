"""An engine as a model of lm-evaluation-harness: its ``LM`` interface onto live weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Engine
from safemerge.engines.lm_eval_requests import LmEvalRequests


class LiveModel(LM):
    """The candidate that an engine holds, for ``lm_eval.simple_evaluate(model=...)``.

    Args:
        engine: With a candidate loaded.
        chat: The base model's tokenizer.
        max_model_len: The engine's context, in tokens.
        max_tokens: Tokens generated where a task does not say.
    """

    def __init__(
        self, engine: Engine, chat: ChatFormat, *, max_model_len: int, max_tokens: int = 256
    ) -> None:
        super().__init__()
        self._engine = engine
        self._chat = chat
        self._max_model_len = max_model_len
        self._max_tokens = max_tokens

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        asked = LmEvalRequests(
            requests,
            self._chat,
            max_model_len=self._max_model_len,
            max_tokens=self._max_tokens,
            where="lm_eval",
        )
        return asked.answers(
            self._engine.generate(asked.prompts) if asked.prompts else [],
            self._engine.loglikelihoods(asked.continuations) if asked.continuations else [],
        )

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability, and whether it is greedy."""
        return self._answers(requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Return each text's log-probability."""
        return self._answers(requests)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Return each answer, cut at its stop texts."""
        return self._answers(requests)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return messages as one text in the model's chat format."""
        return self._chat.conversation(chat_history, add_generation_prompt=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for the harness's cache."""
        return str(self._chat.tokenizer.name_or_path).replace("/", "__")
