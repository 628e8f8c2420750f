"""A guard model on a vLLM engine of its own: questions answered together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safemerge.config.judge import GuardJudge, JudgeServiceSpec
from safemerge.engines.core_claim import CoreClaim
from safemerge.engines.vllm_reply import VllmReplies
from safemerge.errors import SafemergeError, ScoringError
from safemerge.scoring.guard import LEFT_OUT, GuardAsk, GuardReply, GuardTemplate
from safemerge.scoring.guard_model import NUM_LIKELIEST, guard_tokenizer

REPLY_ROOM = 64
"""Tokens of the context that are left for a reply."""


class VllmGuardModel:
    """A causal language model that answers all questions of a call at once; see `GuardModel`.

    Args:
        spec: The declared judge.
        service: Memory and cores of the engine.

    Raises:
        CheckpointError: If the tokenizer cannot be loaded, or its chat template cannot ask; see
            `GuardTemplate`.
        PreflightError: If vLLM is not installed.
        EngineError: If the engine does not start.
    """

    def __init__(self, spec: GuardJudge, service: JudgeServiceSpec) -> None:
        self._spec = spec
        self._tokenizer: Any = guard_tokenizer(spec)
        self._template = GuardTemplate(spec, self._tokenizer)
        self._ends = self._template.ends()
        self._claim = CoreClaim(max(1, int(service.cpus_per_replica)))
        try:
            self._engine = VllmReplies(
                spec.source,
                max_model_len=spec.max_tokens + REPLY_ROOM,
                kv_cache_gib=service.kv_cache_gib,
                gpu_memory_utilization=service.gpu_memory_utilization,
                cpu_ids=self._claim.cpu_ids,
            )
        except SafemergeError:
            self._claim.release()
            raise

    def reply(self, asks: Sequence[GuardAsk]) -> list[GuardReply]:
        """Answer greedily, all at once; what cannot be asked fails on its own.

        Raises:
            ScoringError: If the engine gives no answer to one.
        """
        ids = [self._template.token_ids(ask) for ask in asks]
        limit = min(self._spec.max_tokens, self._engine.max_model_len - REPLY_ROOM)
        fitting = {
            index: row for index, row in enumerate(ids) if row is not None and len(row) <= limit
        }
        made = self._engine.reply(
            [
                (row, min(asks[index].max_reply_tokens, REPLY_ROOM))
                for index, row in fitting.items()
            ],
            num_likeliest=NUM_LIKELIEST,
            ends=self._ends,
        )
        if len(made) != len(fitting):
            raise ScoringError(
                f"judge '{self._spec.name}': every question must be answered; got {len(made)} of "
                f"{len(fitting)}."
            )
        replies = [
            GuardReply("", failed=LEFT_OUT if row is None else _too_long(row, limit))
            for row in ids
        ]
        for index, reply in zip(fitting, made, strict=True):
            ids_said = list(reply.token_ids)
            if ids_said and ids_said[-1] in self._ends:
                del ids_said[-1]
            replies[index] = GuardReply(
                self._tokenizer.decode(ids_said, skip_special_tokens=True),
                steps=tuple(self._by_text(step) for step in reply.steps),
            )
        return replies

    def _by_text(self, step: Mapping[int, float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for token, logprob in sorted(step.items(), key=lambda item: -item[1]):
            # NOTE: two tokens may decode to one text; the likelier one comes first.
            found.setdefault(str(self._tokenizer.decode([token])), logprob)
        return found

    def close(self) -> None:
        """End the engine and give its cores back."""
        self._engine.close()
        self._claim.release()


def _too_long(row: Sequence[int], limit: int) -> str:
    return f"too long for the judge: {len(row)} tokens, limit {limit}"
