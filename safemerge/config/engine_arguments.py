"""vLLM's own arguments, passed through under vLLM's names."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from safemerge.config.problems import did_you_mean, shortened

SET_BY_SAFEMERGE = {
    "model": "It is the study's base.",
    "tokenizer": "Use the study's tokenizer.",
    "trust_remote_code": "Code of a checkpoint is never run.",
    "dtype": "Use evaluator.dtype.",
    "max_model_len": "Use evaluator.max_model_len.",
    "max_num_seqs": "Use evaluator.max_num_seqs.",
    "tensor_parallel_size": "Use evaluator.tensor_parallel_size.",
    "gpu_memory_utilization": "Use evaluator.gpu_memory_utilization.",
    "enable_prefix_caching": "The cache is reset with each candidate.",
    "seed": "Answers are greedy, or drawn with the study's seed.",
    "weight_transfer_config": "It is how candidates reach the engine.",
}
"""Arguments that are refused, each with what to do instead."""


def argument_problems(engine: str, arguments: Mapping[str, object]) -> Iterator[str]:
    """Yield what is wrong with an evaluator's engine arguments.

    Args:
        engine: The evaluator's engine.
        arguments: Value by vLLM's name. Names are compared with those of the installed vLLM;
            where none is installed, with nothing.
    """
    if arguments and engine != "vllm":
        yield (
            f"engine_arguments: are vLLM's; got engine: {engine}. Drop them, or take engine: vllm."
        )
        return
    known = vllm_arguments()
    for name, value in arguments.items():
        where = f"engine_arguments.{name}"
        if name in SET_BY_SAFEMERGE:
            yield f"{where}: is set by safemerge; got {shortened(value)}. {SET_BY_SAFEMERGE[name]}"
        elif known and name not in known:
            advice = did_you_mean(name, known)
            if advice.startswith("Known"):
                advice = "See EngineArgs in vLLM's documentation."
            yield f"{where}: vLLM has no such argument; got {shortened(value)}. {advice}"


@lru_cache(maxsize=1)
def vllm_arguments() -> frozenset[str]:
    """Return the engine arguments of the installed vLLM, read from its source; none without it."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return frozenset()
    source = Path(found.origin).parent / "engine" / "arg_utils.py"
    if not source.is_file():
        return frozenset()
    # NOTE: importing vLLM takes many seconds, which `safemerge validate` must not.
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            names = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            return frozenset(item.id for item in names if isinstance(item, ast.Name))
    return frozenset()
