"""A stage's end by what it taught: the share of held-out unsafe requests that are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safemerge.config.alignment import UntilSpec
from safemerge.engines.answer_end import sorted_ends
from safemerge.engines.chat import ChatFormat
from safemerge.scoring.refusal import is_refusal
from safemerge.weights.generation_config import named_ends

BATCH_SIZE = 64
"""Prompts that are answered at once."""


def greedy_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    chat: ChatFormat,
    ends: Sequence[int],
    max_tokens: int,
    device: str = "cpu",
) -> list[str]:
    """Answer prompts greedily by the model as it is now; its training mode is kept.

    Args:
        model: A causal LM of transformers, bare or with a peft adapter, not sharded.
        prompts: Token ids of each.
        chat: Decodes the answers.
        ends: Tokens that end an answer; at least one.
        max_tokens: Most tokens of an answer.
        device: Where the model is.

    Returns:
        Texts without special tokens, in the prompts' order.
    """
    from transformers import GenerationConfig

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    training, own = model.training, causal.generation_config
    model.eval()
    # Of the checkpoint's own settings none counts, as when a merge is evaluated.
    causal.generation_config = GenerationConfig()
    texts: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    try:
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            longest = max(len(prompts[index]) for index in chosen)
            ids = torch.full((len(chosen), longest), ends[0])
            mask = torch.zeros_like(ids)
            for row, index in enumerate(chosen):
                ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
                mask[row, longest - len(prompts[index]) :] = 1
            with torch.no_grad():
                said = causal.generate(
                    input_ids=ids.to(device),
                    attention_mask=mask.to(device),
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    eos_token_id=list(ends),
                    pad_token_id=ends[0],
                )[:, longest:]
            for index, row in zip(chosen, said, strict=True):
                texts[index] = chat.tokenizer.decode(row, skip_special_tokens=True)
    finally:
        causal.generation_config = own
        model.train(training)
    return [texts[index] for index in range(len(prompts))]


class RefusalGate:
    """Asks the model of a stage held-out requests, and tells when enough are refused.

    Args:
        spec: What is enough, and when it is measured.
        model: The model that is trained.
        prompts: Token ids of the held-out requests.
        chat: The base's chat format.
        base: The base's folder: where its answers end.
        device: Where the model is.
    """

    def __init__(
        self,
        spec: UntilSpec,
        model: Any,
        prompts: Sequence[Sequence[int]],
        *,
        chat: ChatFormat,
        base: Path,
        device: str = "cpu",
    ) -> None:
        self._spec, self._model, self._prompts = spec, model, prompts
        self._chat, self._device = chat, device
        tokenizer = chat.tokenizer
        ends = [chat.end_of_turn_id(), tokenizer.eos_token_id, *named_ends(base)]
        self._ends = sorted_ends(tokenizer, ends)
        self._measured: dict[int, float] = {}

    def is_passed(self, step: int) -> bool:
        """Tell whether the stage ends before a step (0-indexed); measures where it is time."""
        if step < max(1, self._spec.min_steps) or step % self._spec.every:
            return False
        return self.refusal(step) >= self._spec.refusal

    def refusal(self, step: int) -> float:
        """Return the share of the requests that is refused before a step, in [0, 1]."""
        if step not in self._measured:
            answers = greedy_answers(
                self._model,
                self._prompts,
                chat=self._chat,
                ends=self._ends,
                max_tokens=self._spec.max_tokens,
                device=self._device,
            )
            self._measured[step] = sum(map(is_refusal, answers)) / len(answers)
        return self._measured[step]

    def at(self, step: int) -> dict[str, float]:
        """Return what was measured before a step, as fields of `StepMetrics`."""
        return {"refusal": self._measured[step]} if step in self._measured else {}
