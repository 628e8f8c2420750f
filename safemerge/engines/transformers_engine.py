"""The reference engine: plain transformers, slow and simple, for tests and to check vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.chat import ChatFormat
from safemerge.engines.drawing import DrawnTokens
from safemerge.engines.engine import TokenizedPrompt
from safemerge.engines.precision import compute_dtype
from safemerge.errors import EngineError
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.records import Response


class _AllowedIds:
    """Logits processor: rows restricted to their allowed tokens."""

    def __init__(self, allowed: Sequence[tuple[int, ...] | None]) -> None:
        self._allowed = allowed

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, ids in enumerate(self._allowed):
            if ids is not None:
                kept = scores[row, list(ids)].clone()
                scores[row] = -torch.inf
                scores[row, list(ids)] = kept
        return scores


class TransformersEngine:
    """A transformers model whose parameters are overwritten by each recipe's merge.

    Args:
        models: Resolved recipe that names every model a later recipe may use.
        spec: Only `dtype` and `max_num_seqs` matter here.
    """

    def __init__(self, models: MergeRecipe, spec: EvaluatorSpec) -> None:
        from transformers import AutoModelForCausalLM

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = compute_dtype(spec.dtype, device=self._device)
        self._model: Any = AutoModelForCausalLM.from_pretrained(str(models.base.path), dtype=dtype)
        self._model.to(self._device).eval()
        chat = ChatFormat(str(models.base.path))
        self._end_id = chat.end_of_turn_id()
        self._decode = chat.tokenizer.decode
        self._batch_size = spec.max_num_seqs
        self._resident = ResidentCheckpoints.open(models)
        self._candidate: str | None = None

    def load(self, recipe: MergeRecipe) -> None:
        """Copy the merge into the model's parameters; see `Engine.load`."""
        self._candidate = None
        parameters = self._model.state_dict()
        with torch.no_grad():
            for name, tensor in self._resident.merged(recipe):
                if name in parameters:
                    parameters[name].copy_(tensor)
        self._candidate = recipe.digest

    def generate(self, prompts: Sequence[TokenizedPrompt]) -> list[Response]:
        """Answer prompts greedily, batched by length; see `Engine.generate`."""
        if self._candidate is None:
            raise EngineError("engine: a candidate must be loaded before prompts are answered.")
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].token_ids))
        responses: dict[int, Response] = {}
        for start in range(0, len(order), self._batch_size):
            indexes = order[start : start + self._batch_size]
            batch = [prompts[i] for i in indexes]
            for index, tokens in zip(indexes, self._generate_batch(batch), strict=True):
                cut = tokens[: prompts[index].max_tokens]
                finished = self._end_id in cut
                kept = cut[: cut.index(self._end_id)] if finished else cut
                responses[index] = Response(
                    sample_id=prompts[index].sample_id,
                    text=self._decode(kept, skip_special_tokens=True),
                    num_tokens=len(kept) + int(finished),
                    finished=finished,
                    candidate=self._candidate,
                )
        return [responses[i] for i in range(len(prompts))]

    def _generate_batch(self, batch: Sequence[TokenizedPrompt]) -> list[list[int]]:
        longest = max(len(prompt.token_ids) for prompt in batch)
        ids = torch.full((len(batch), longest), self._end_id)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
            mask[row, longest - len(prompt.token_ids) :] = 1
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                max_new_tokens=max(prompt.max_tokens for prompt in batch),
                do_sample=False,
                eos_token_id=self._end_id,
                pad_token_id=self._end_id,
                logits_processor=[
                    _AllowedIds([prompt.allowed_ids for prompt in batch]),
                    DrawnTokens([prompt.sampling for prompt in batch]),
                ],
            )
        return [row[longest:].tolist() for row in output]

    def close(self) -> None:
        """Drop the model."""
        self._model = None
        self._candidate = None
