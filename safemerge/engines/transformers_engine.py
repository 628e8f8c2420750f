"""The reference engine: plain transformers, slow and simple, for tests and to check vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.answer_end import answer_ends
from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import (
    Continuation,
    Likelihood,
    Sampling,
    TokenizedPrompt,
    until_stop,
)
from safemerge.engines.precision import compute_dtype
from safemerge.errors import EngineError
from safemerge.merge.candidate_tokenizer import candidate_tokenizer
from safemerge.merge.resident import ResidentCheckpoints
from safemerge.records import Response
from safemerge.weights.skeleton import auto_class, conversions


class DrawnTokens:
    """Logits processor: rows that are sampled become noisy log-probabilities; others stay.

    Args:
        samplings: How each row is drawn; None for a greedy row.
    """

    def __init__(self, samplings: Sequence[Sampling | None]) -> None:
        self._samplings = samplings
        # NOTE: on the CPU, so that devices draw alike.
        self._generators = [
            None if item is None else torch.Generator().manual_seed(item.seed)
            for item in samplings
        ]

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the next tokens' scores, shape (rows, vocabulary); changed in place."""
        for row, (sampling, generator) in enumerate(
            zip(self._samplings, self._generators, strict=True)
        ):
            if sampling is not None and generator is not None:
                scores[row] = _noisy(scores[row], sampling, generator).to(scores.dtype)
        return scores


def _noisy(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> torch.Tensor:
    logprobs = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
    ordered, tokens = logprobs.sort(descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    # NOTE: the first token stays whatever its share: nothing lies before it.
    logprobs[tokens[before >= sampling.top_p]] = -torch.inf
    uniform = torch.rand(logits.shape[-1], generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    return logprobs + gumbel.to(logprobs)


LOGITS_BYTES = 2**28
"""Largest tensor of logits that scoring makes, unless a single text needs more."""


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


class _Stops:
    """Stopping criterion: rows end with a stop token, or once a stop text is in what they say."""

    def __init__(
        self, prompts: Sequence[TokenizedPrompt], decode: Callable[..., str], num_prompt: int
    ) -> None:
        self._prompts, self._decode, self._num_prompt = prompts, decode, num_prompt

    def __call__(self, ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
        ended = []
        for row, prompt in zip(ids, self._prompts, strict=True):
            said = row[self._num_prompt :]
            text = self._decode(said, skip_special_tokens=True) if prompt.stop else ""
            ended.append(
                int(said[-1]) in prompt.stop_ids or any(end in text for end in prompt.stop)
            )
        return torch.tensor(ended, device=ids.device)


class TransformersEngine:
    """A transformers model whose parameters are overwritten by each recipe's merge.

    Args:
        models: Resolved recipe that names every model a later recipe may use.
        spec: Only `dtype` and `max_num_seqs` matter here.
    """

    def __init__(self, models: MergeRecipe, spec: EvaluatorSpec) -> None:
        from transformers import GenerationConfig

        self._resident = ResidentCheckpoints.open(models, for_engine=True, grows=True)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = compute_dtype(spec.dtype, device=self._device)
        loader = auto_class(str(models.base.path))
        self._model: Any = loader.from_pretrained(str(models.base.path), dtype=dtype)
        self._model.to(self._device).eval()
        # Of the checkpoint's own settings only its ends count: a penalty of its
        # generation_config.json would make greedy answers other than vLLM's.
        self._model.generation_config = GenerationConfig()
        chat = ChatFormat(candidate_tokenizer(models))
        self._ends = answer_ends(models, chat)
        self._decode = chat.tokenizer.decode
        self._batch_size = spec.max_num_seqs
        self._of_name = {
            name: entry
            for entry in conversions(self._model, self._resident.base.names)
            for names in entry.stored
            for name in names
        }
        self._candidate: str | None = None

    def load(self, recipe: MergeRecipe) -> None:
        """Merge into the model's parameters; see `Engine.load`."""
        self._candidate = None
        parameters = self._model.state_dict()
        parts: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

        def place(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor | None:
            entry = self._of_name.get(name)
            if entry is None or entry.converter is not None:
                return None
            found: torch.Tensor = parameters[entry.memory[0]]
            if found.device.type != "cpu" or not found.is_contiguous():
                return None
            return found if (found.dtype, tuple(found.shape)) == (dtype, shape) else None

        with torch.no_grad():
            for name, tensor in self._resident.merged(recipe, destination=place):
                entry = self._of_name.get(name)
                if entry is None:
                    continue  # transformers ignores what its model does not have
                gathered = parts.setdefault(entry.memory, {})
                gathered[name] = tensor
                if len(gathered) == sum(map(len, entry.stored)):
                    for parameter, value in entry.to_memory(parts.pop(entry.memory)).items():
                        if value is not parameters[parameter]:
                            parameters[parameter].copy_(value)
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
                ends = {*self._ends, *prompts[index].stop_ids}
                length = next((at for at, token in enumerate(cut) if token in ends), None)
                ended, kept = length is not None, cut[:length]
                text = self._decode(kept, skip_special_tokens=True)
                answer = until_stop(text, prompts[index].stop)
                responses[index] = Response(
                    sample_id=prompts[index].sample_id,
                    text=answer,
                    num_tokens=len(kept) + int(ended),
                    finished=ended or answer != text,
                    candidate=self._candidate,
                )
        return [responses[i] for i in range(len(prompts))]

    def _generate_batch(self, batch: Sequence[TokenizedPrompt]) -> list[list[int]]:
        longest = max(len(prompt.token_ids) for prompt in batch)
        ids = torch.full((len(batch), longest), self._ends[0])
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
                eos_token_id=list(self._ends),
                pad_token_id=self._ends[0],
                logits_processor=[
                    _AllowedIds([prompt.allowed_ids for prompt in batch]),
                    DrawnTokens([prompt.sampling for prompt in batch]),
                ],
                stopping_criteria=[_Stops(batch, self._decode, longest)],
            )
        return [row[longest:].tolist() for row in output]

    def loglikelihoods(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        """Score continuations, batched by length; see `Engine.loglikelihoods`."""
        if self._candidate is None:
            raise EngineError("engine: a candidate must be loaded before texts are scored.")
        found: dict[int, Likelihood] = {}
        for indexes in self._score_batches(continuations):
            batch = [continuations[i] for i in indexes]
            for index, (logprob, is_greedy) in zip(indexes, self._score(batch), strict=True):
                found[index] = Likelihood(
                    sample_id=continuations[index].sample_id,
                    logprob=logprob,
                    num_tokens=len(continuations[index].continuation_ids),
                    is_greedy=is_greedy,
                    candidate=self._candidate,
                )
        return [found[i] for i in range(len(continuations))]

    def _score_batches(self, continuations: Sequence[Continuation]) -> Iterator[list[int]]:
        """Longest first, as many at a time as `max_num_seqs` and `LOGITS_BYTES` allow."""
        most = LOGITS_BYTES // (4 * self._model.config.get_text_config().vocab_size)
        order = sorted(range(len(continuations)), key=lambda i: -_length(continuations[i]))
        batch: list[int] = []
        for index in order:
            asked = [continuations[i] for i in (*batch, index)]
            if batch and (len(asked) > self._batch_size or len(asked) * _kept(asked) > most):
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _score(self, batch: Sequence[Continuation]) -> list[tuple[float, bool]]:
        # Padded at the end: no token attends to what comes after it.
        longest, kept = _length(batch[0]), _kept(batch)
        ids = torch.full((len(batch), longest), self._ends[0])
        for row, asked in enumerate(batch):
            ids[row, : _length(asked)] = torch.tensor(asked.context_ids + asked.continuation_ids)
        with torch.inference_mode():
            logits = self._model(
                input_ids=ids[:, :-1].to(self._device), logits_to_keep=kept, use_cache=False
            ).logits.cpu()
        scores = []
        for row, asked in enumerate(batch):
            # The token before a continuation's first one predicts it.
            first = len(asked.context_ids) - 1 - (longest - 1 - kept)
            rows = logits[row, first : first + len(asked.continuation_ids)].float()
            targets = torch.tensor(asked.continuation_ids)
            logprobs = rows.log_softmax(-1).gather(-1, targets[:, None])
            is_greedy = bool((rows.argmax(-1) == targets).all())
            scores.append((float(logprobs.sum(dtype=torch.float64)), is_greedy))
        return scores

    def close(self) -> None:
        """Drop the model."""
        self._model = None
        self._candidate = None


def _length(asked: Continuation) -> int:
    return len(asked.context_ids) + len(asked.continuation_ids)


def _kept(batch: Sequence[Continuation]) -> int:
    """Positions of a batch, counted from the end, whose logits are needed."""
    return max(map(_length, batch)) - min(len(asked.context_ids) for asked in batch)
