"""A plain vLLM engine with fixed weights: greedy replies, and each step's likeliest tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safemerge.config.extra import VLLM
from safemerge.errors import EngineError, PreflightError


@dataclass(frozen=True)
class GreedyReply:
    """What the model said to one prompt."""

    token_ids: tuple[int, ...]
    steps: tuple[Mapping[int, float], ...]
    """For each generated token, natural log-probabilities of the likeliest tokens by id."""


class VllmReplies:
    """One vLLM engine on one checkpoint.

    Args:
        source: Folder of the checkpoint, or its id on the hub.
        max_model_len: Longest prompt plus reply, in tokens; the model's own limit if lower.
        kv_cache_gib: KV cache on CPUs, GiB.
        gpu_memory_utilization: Share of a GPU's memory.
        cpu_ids: CPU ids that threads are bound to, e.g. ``0,1``; None leaves them unbound.

    Raises:
        PreflightError: If vLLM is not installed.
        EngineError: If the engine does not start.
    """

    def __init__(
        self,
        source: str,
        *,
        max_model_len: int,
        kv_cache_gib: float,
        gpu_memory_utilization: float,
        cpu_ids: str | None,
    ) -> None:
        import torch
        import transformers

        on_cpu = not torch.cuda.is_available()
        os.environ.update(
            {
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
                # Processes of its own: an evaluator's engine may live in this one.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
                "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
            }
        )
        if on_cpu:
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = cpu_ids or "nobind"
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise PreflightError(
                f"judge.engine: vllm must be installed; got: {error}. {VLLM}, or set engine: "
                "transformers."
            ) from None
        self._sampling_params = SamplingParams
        memory: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization}
        if on_cpu:
            memory = {
                "enforce_eager": True,
                "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
                # NOTE: bf16 without native instructions is about ten times slower.
                "dtype": "float32",
            }
        try:
            config = transformers.AutoConfig.from_pretrained(source)
            own = getattr(config.get_text_config(), "max_position_embeddings", max_model_len)
            self.max_model_len = min(max_model_len, own)
            """Longest prompt plus reply, in tokens."""
            self._llm: Any = LLM(
                model=source,
                max_model_len=self.max_model_len,
                enable_prefix_caching=True,
                seed=0,
                **memory,
            )
        except (RuntimeError, ValueError, OSError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()] or ["?"]
            raise EngineError(
                f"judge.engine: vllm must start on {source}; got: {lines[-1]}. Set "
                "VLLM_LOGGING_LEVEL=INFO and run again to see vLLM's own log."
            ) from error

    def reply(
        self,
        prompts: Sequence[tuple[Sequence[int], int]],
        *,
        num_likeliest: int,
        ends: Sequence[int] = (),
    ) -> list[GreedyReply]:
        """Answer prompts greedily.

        Args:
            prompts: Token ids, and the most tokens of the reply.
            num_likeliest: Tokens listed at each step, at most 20.
            ends: Tokens that end a reply, beside those that the model's own settings name.

        Returns:
            One reply a prompt, in order.
        """
        if not prompts:
            return []
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(ids)} for ids, _ in prompts],
            [
                self._sampling_params(
                    temperature=0.0,
                    max_tokens=longest,
                    logprobs=num_likeliest,
                    stop_token_ids=list(ends),
                )
                for _, longest in prompts
            ],
            use_tqdm=False,
        )
        return [
            GreedyReply(
                tuple(output.outputs[0].token_ids),
                tuple(
                    {int(token): float(found.logprob) for token, found in step.items()}
                    for step in output.outputs[0].logprobs
                ),
            )
            for output in outputs
        ]

    def close(self) -> None:
        """Shut the engine's processes down; safe to call twice."""
        llm, self._llm = getattr(self, "_llm", None), None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
