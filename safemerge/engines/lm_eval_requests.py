"""lm-evaluation-harness's requests as an engine takes them, tokenised as the harness does.

References: ``lm_eval.models.huggingface.HFLM`` of v0.4, whose token ids these are. Departure:
what does not fit the context is refused; the harness cuts its beginning off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safemerge.engines.chat import ChatFormat
from safemerge.engines.engine import Continuation, Likelihood, TokenizedPrompt
from safemerge.errors import ConfigError, DataError
from safemerge.records import Response

MAX_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of an answer's largest length in a request's settings, the first one given counts."""


class LmEvalRequests:
    """A list of the harness's requests, ready for any candidate.

    Args:
        instances: Requests for a text (``generate_until``), for the log-probability of a
            continuation (``loglikelihood``), or of a whole text (``loglikelihood_rolling``).
        chat: The model's tokenizer.
        max_model_len: The engine's context, in tokens.
        max_tokens: Tokens generated where a request does not say.
        where: Place for messages, and beginning of sample ids.

    Raises:
        DataError: If a request does not fit the context.
        ConfigError: If a request wants its answer sampled; engines decode greedily.
    """

    def __init__(
        self,
        instances: Sequence[Any],
        chat: ChatFormat,
        *,
        max_model_len: int,
        max_tokens: int,
        where: str,
    ) -> None:
        self._chat = chat
        self._tokenizer = chat.tokenizer
        self._max_model_len = max_model_len
        self._max_tokens = max_tokens
        self._where = where
        prompts: list[TokenizedPrompt] = []
        continuations: list[Continuation] = []
        self._counts: list[tuple[str, int]] = []
        for index, instance in enumerate(instances):
            identity, kind = f"{where}: request {index}", instance.request_type
            if kind == "generate_until":
                prompts.append(self._prompt(identity, *instance.args))
                self._counts.append((kind, 1))
                continue
            pairs = (
                [self._pair(*instance.args)]
                if kind == "loglikelihood"
                else list(self._windows(*instance.args))
            )
            continuations += [self._continuation(identity, *pair) for pair in pairs]
            self._counts.append((kind, len(pairs)))
        self.prompts = tuple(prompts)
        self.continuations = tuple(continuations)

    @property
    def both(self) -> tuple[tuple[TokenizedPrompt, ...], tuple[Continuation, ...]]:
        """What is to be answered, and what is to be scored."""
        return self.prompts, self.continuations

    def answers(
        self, responses: Sequence[Response], likelihoods: Sequence[Likelihood]
    ) -> list[str | float | tuple[float, bool]]:
        """Turn an engine's answers into what the harness expects, one per request.

        Args:
            responses: One per prompt, in order.
            likelihoods: One per continuation, in order.
        """
        texts, scores = iter(responses), iter(likelihoods)
        found: list[str | float | tuple[float, bool]] = []
        for kind, count in self._counts:
            if kind == "generate_until":
                found.append(next(texts).text)
            elif kind == "loglikelihood":
                score = next(scores)
                found.append((score.logprob, score.is_greedy))
            else:
                found.append(sum(next(scores).logprob for _ in range(count)))
        return found

    def _encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids; special ones only if the text does not begin with the first one already."""
        opening = self._tokenizer.decode([self._first_id()])
        add_special = add_special and not text.startswith(opening)
        return list(self._tokenizer.encode(text, add_special_tokens=add_special))

    def _first_id(self) -> int:
        """The token that stands before a text without context."""
        bos = self._tokenizer.bos_token_id
        return int(self._tokenizer.eos_token_id if bos is None else bos)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Blanks at a context's end belong to the continuation, as words begin with them."""
        if not context:
            ids = self._encode(continuation, add_special=False)
            if ids[:1] == [self._first_id()]:
                return ids[:1], ids[1:]
            return [self._first_id()], ids
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        whole, before = self._encode(kept + continuation), self._encode(kept)
        return before, whole[len(before) :]

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """Cut a text so that each token is predicted once, with as much context as fits."""
        ids, longest = self._encode(text), self._max_model_len - 2
        ids = [self._first_id(), *ids]
        done = 1
        while done < len(ids):
            stop = min(done + longest, len(ids))
            # A last window that is not full looks further back.
            start = 0 if done == 1 else stop - longest - 1
            yield ids[start:done], ids[done:stop]
            done = stop

    def _continuation(
        self, identity: str, context: Sequence[int], continuation: Sequence[int]
    ) -> Continuation:
        if len(context) + len(continuation) >= self._max_model_len:
            raise DataError(
                f"{self._where}: context and continuation must be shorter than "
                f"{self._max_model_len} tokens; got {len(context)} + {len(continuation)}. "
                "Raise evaluator.max_model_len, or lower num_fewshot."
            )
        return Continuation(identity, tuple(context), tuple(continuation))

    def _prompt(self, identity: str, context: str, settings: Mapping[str, Any]) -> TokenizedPrompt:
        sampled = settings.get("do_sample")
        if sampled or (sampled is None and float(settings.get("temperature", 0)) > 0):
            raise ConfigError(
                f"{self._where}: answers must be greedy; got a request that samples. "
                "Choose another task."
            )
        limits = [settings[key] for key in MAX_TOKENS_KEYS if settings.get(key) is not None]
        max_tokens = int(limits[0]) if limits else self._max_tokens
        ids = self._encode(context)
        if len(ids) + max_tokens > self._max_model_len:
            raise DataError(
                f"{self._where}: prompt and answer must fit {self._max_model_len} tokens; got "
                f"{len(ids)} + {max_tokens}. Raise evaluator.max_model_len, or lower num_fewshot."
            )
        until = settings.get("until") or []
        given = [until] if isinstance(until, str) else list(until)
        stop = tuple(text for text in given if text)
        return TokenizedPrompt(
            identity, tuple(ids), max_tokens, stop=stop, stop_ids=self._chat.stop_ids(stop)
        )
