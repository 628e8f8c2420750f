"""The vLLM engine: started once, its weights swapped in place for each candidate."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from safemerge.config.extra import VLLM
from safemerge.config.recipe import MergeRecipe
from safemerge.config.study import EvaluatorSpec
from safemerge.engines.answer_end import answer_ends
from safemerge.engines.chat import ChatFormat
from safemerge.engines.core_claim import bind_process
from safemerge.engines.engine import Continuation, Likelihood, Sampling, TokenizedPrompt
from safemerge.engines.precision import compute_dtype
from safemerge.engines.vllm_likelihood import Tokens, distinct, read_scores, requests
from safemerge.engines.vllm_plugin import BACKEND, CHECKPOINT_ERROR_MARK, MERGE_ERROR_MARK
from safemerge.errors import CheckpointError, EngineError, MergeError, PreflightError
from safemerge.merge.candidate_tokenizer import candidate_tokenizer
from safemerge.records import Response

CPU_BLOCK_TOKENS = 32
"""KV block on CPUs. vLLM's default of 128 would leave no short prompt's prefix shareable."""

_MARKED = {MERGE_ERROR_MARK: MergeError, CHECKPOINT_ERROR_MARK: CheckpointError}
"""What a worker's error is raised as here, by the mark in its text."""


class VllmEngine:
    """One vLLM engine whose weights are a recipe's merge.

    Args:
        models: Resolved recipe that names every model a later recipe may use; the engine
            starts with the base's weights.
        spec: Sizes and types.
        cpu_ids: CPU ids that the engine's threads are bound to, e.g. ``0,1``; on GPUs unused.
            None leaves them unbound.
        in_process: Whether this process has no other vLLM engine. On CPUs, without tensor
            parallelism, vLLM then runs in it, instead of in two processes behind it that each
            import all of it again. On GPUs it keeps processes of its own: an error there
            spoils the process for good.

    Raises:
        PreflightError: If vLLM is not installed.
        CheckpointError: If a checkpoint cannot be read, or is not what its digest says.
        EngineError: If the engine does not start.
    """

    def __init__(
        self,
        models: MergeRecipe,
        spec: EvaluatorSpec,
        *,
        cpu_ids: str | None = None,
        in_process: bool = False,
    ) -> None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        alone = in_process and device == "cpu" and spec.tensor_parallel_size == 1
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0" if alone else "1",
            "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        }
        if device == "cpu":
            environment["VLLM_CPU_OMP_THREADS_BIND"] = cpu_ids or "nobind"
            # Models run eagerly; a few helpers would still be compiled, for which a machine
            # may have no compiler. Torch reads the first on import, the second at each use.
            environment["TORCH_COMPILE_DISABLE"] = environment["TORCHDYNAMO_DISABLE"] = "1"
        os.environ.update(environment)
        try:
            from vllm import LLM, SamplingParams
            from vllm.config import WeightTransferConfig
        except ImportError as error:
            raise PreflightError(
                f"evaluator.engine: vllm must be installed; got: {error}. {VLLM}, or set "
                "evaluator.engine: transformers."
            ) from None
        self._home = _Home() if alone else None
        if self._home is not None and cpu_ids is not None:
            self._home.bind([int(core) for core in cpu_ids.split(",")])
        on_cpu: dict[str, Any] = {
            "enforce_eager": True,
            "block_size": CPU_BLOCK_TOKENS,
            "kv_cache_memory_bytes": int(spec.kv_cache_gib * 2**30),
        }
        on_gpu: dict[str, Any] = {"gpu_memory_utilization": spec.gpu_memory_utilization}
        on_device = on_cpu if device == "cpu" else on_gpu
        if ours := sorted(set(on_device) & set(spec.engine_arguments)):
            raise PreflightError(
                f"evaluator.engine_arguments.{ours[0]}: is set by safemerge on a {device}; got "
                f"{spec.engine_arguments[ours[0]]!r}. Drop it."
            )
        self._sampling_params = SamplingParams
        self._candidate: str | None = None
        tokenizer = candidate_tokenizer(models)
        self._ends = answer_ends(models, ChatFormat(tokenizer))
        try:
            self._llm: Any = LLM(
                model=str(models.base.path),
                tokenizer=str(tokenizer),
                # vLLM ends answers at the tokens that this config names, by the tokenizer's ids.
                generation_config=str(tokenizer),
                dtype=str(compute_dtype(spec.dtype, device=device)).removeprefix("torch."),
                max_model_len=spec.max_model_len,
                max_num_seqs=spec.max_num_seqs,
                tensor_parallel_size=spec.tensor_parallel_size,
                enable_prefix_caching=True,
                seed=0,
                weight_transfer_config=WeightTransferConfig(backend=BACKEND),
                **on_device,
                **spec.engine_arguments,
            )
        except (RuntimeError, ValueError, TypeError, OSError) as error:
            self.close()
            raise EngineError(
                f"vllm engine: must start on {models.base.path}; got: {_last_line(error)}. "
                "Set VLLM_LOGGING_LEVEL=INFO and run again to see vLLM's own log."
            ) from error
        try:
            self._rpc(
                "init_weight_transfer_engine",
                init_info={
                    "models": models.model_dump_json(by_alias=True),
                    "place": spec.models,
                },
            )
        except BaseException:
            self.close()
            raise

    def _rpc(self, method: str, **kwargs: Any) -> None:
        try:
            self._llm.collective_rpc(method, kwargs=kwargs)
        except Exception as error:
            for mark, kind in _MARKED.items():
                if mark in str(error):
                    reason = str(error).split(mark)[-1]
                    raise kind(reason.splitlines()[0].strip()) from error
            raise EngineError(
                f"vllm engine: {method} failed; got: {_last_line(error)}."
            ) from error

    def load(self, recipe: MergeRecipe) -> None:
        """Swap the recipe's merge into the running engine; see `Engine.load`.

        The prefix cache is emptied: its keys and values belong to the weights before.
        """
        self._candidate = None
        self._rpc("start_weight_update")
        self._rpc("update_weights", update_info={"recipe": recipe.model_dump_json(by_alias=True)})
        self._rpc("finish_weight_update")
        if not self._llm.reset_prefix_cache():
            raise EngineError(
                "vllm engine: the prefix cache must be emptied after a swap; vLLM refused, "
                "requests are still running. The engine is rebuilt."
            )
        version = recipe.digest
        self._llm.llm_engine.set_weight_version(version)
        self._candidate = version

    def generate(self, prompts: Sequence[TokenizedPrompt]) -> list[Response]:
        """Answer prompts, greedily unless they say otherwise; see `Engine.generate`."""
        if self._candidate is None:
            raise EngineError("vllm engine: a candidate must be loaded before prompts are asked.")
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts],
            [
                self._sampling_params(
                    max_tokens=prompt.max_tokens,
                    allowed_token_ids=list(prompt.allowed_ids) if prompt.allowed_ids else None,
                    stop=list(prompt.stop) or None,
                    stop_token_ids=[*self._ends, *prompt.stop_ids],
                    **_drawn(prompt.sampling),
                )
                for prompt in prompts
            ],
            use_tqdm=False,
        )
        return [
            self._response(prompt, output.outputs[0])
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def loglikelihoods(self, continuations: Sequence[Continuation]) -> list[Likelihood]:
        """Score continuations; see `Engine.loglikelihoods`.

        vLLM cannot but generate a token behind each, which is thrown away.
        """
        if self._candidate is None:
            raise EngineError("vllm engine: a candidate must be loaded before texts are scored.")
        block = int(self._llm.llm_engine.vllm_config.cache_config.block_size)
        scores = self._scores(distinct(continuations), block=block)
        cut = [pair for pair, found in scores.items() if found is None]
        scores |= self._scores(cut, block=None)
        return [self._likelihood(asked, scores) for asked in continuations]

    def _scores(
        self, pairs: Sequence[Tokens], *, block: int | None
    ) -> dict[Tokens, tuple[float, bool] | None]:
        asked = list(requests(pairs, block=block))
        if not asked:
            return {}
        fill = self._sampling_params(temperature=0.0, max_tokens=1, detokenize=False)
        score = self._sampling_params(
            temperature=0.0,
            max_tokens=1,
            detokenize=False,
            prompt_logprobs=0,
            flat_logprobs=True,
            skip_reading_prefix_cache=block is None,
        )
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(request.token_ids)} for request in asked],
            [fill if request.pair is None else score for request in asked],
            use_tqdm=False,
        )
        found = {}
        for request, output in zip(asked, outputs, strict=True):
            if request.pair is not None:
                self._check_version(output.outputs[0], "a scored text")
                found[request.pair] = read_scores(request.pair, output)
        return found

    def _likelihood(
        self, asked: Continuation, scores: Mapping[Tokens, tuple[float, bool] | None]
    ) -> Likelihood:
        found = scores[asked.context_ids, asked.continuation_ids]
        if found is None:
            raise EngineError(
                "vllm engine: every token of a continuation must be scored; got fewer for "
                f"{asked.sample_id}. The engine is rebuilt."
            )
        return Likelihood(
            sample_id=asked.sample_id,
            logprob=found[0],
            num_tokens=len(asked.continuation_ids),
            is_greedy=found[1],
            candidate=str(self._candidate),
        )

    def _check_version(self, completion: Any, what: str) -> None:
        versions = {span.version for span in completion.weight_versions or ()}
        if versions != {self._candidate}:
            raise EngineError(
                f"vllm engine: answers must carry weight version {self._candidate}; got "
                f"{sorted(versions)} for {what}. The engine is rebuilt."
            )

    def _response(self, prompt: TokenizedPrompt, completion: Any) -> Response:
        self._check_version(completion, prompt.sample_id)
        return Response(
            sample_id=prompt.sample_id,
            text=completion.text,
            num_tokens=len(completion.token_ids),
            finished=completion.finish_reason == "stop",
            candidate=str(self._candidate),
        )

    def close(self) -> None:
        """Shut the engine down, and its processes where it has some."""
        llm, self._llm = getattr(self, "_llm", None), None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        home, self._home = self._home, None
        if home is not None:
            del llm
            home.restore()


class _Home:
    """A process that an engine runs in, and gives back as it was."""

    def __init__(self) -> None:
        import torch

        self._cores: set[int] | None = None
        self._set_num_threads = torch.set_num_threads
        # NOTE: vLLM looks into every module for its kernels, by the __dict__ of what it finds.
        # numba's handle of LLVM, here once a merge was compiled, gives a C function for any name.
        ffi = sys.modules.get("llvmlite.binding.ffi")
        if ffi is not None:
            ffi.lib._fntab["__dict__"] = {}

    def bind(self, cores: Sequence[int]) -> None:
        """Bind the process to an engine's cores, a thread of torch for each."""
        import torch

        self._cores = os.sched_getaffinity(0)
        bind_process(cores)
        torch.set_num_threads(len(cores))

    def restore(self) -> None:
        """Forget vLLM's distributed state and settings, which it keeps in globals."""
        import torch
        from vllm.distributed import cleanup_dist_env_and_memory

        cleanup_dist_env_and_memory()
        # NOTE: a CPU worker of vLLM's replaces it by a function that only warns.
        torch.set_num_threads = self._set_num_threads
        if self._cores is not None:
            bind_process(self._cores)


def _drawn(sampling: Sampling | None) -> dict[str, Any]:
    """Return how tokens are drawn, by vLLM's names."""
    return {"temperature": 0.0} if sampling is None else vars(sampling)


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
